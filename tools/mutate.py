"""Break the package by one line at a time, as tests/README.md says, and see the tests go red.

`python tools/mutate.py` does all of them, `python tools/mutate.py 3 7` two. Exit code 1 if one goes unnoticed.

The tests run once as they are, and coverage.py keeps which of them runs which line. A broken line is shown to the
quickest of these first, and to all of its files if they don't notice."""
import ast, os, re, shutil, subprocess, sys, tempfile, time
from collections import defaultdict
from coverage import CoverageData
from pathlib import Path
from typing import NamedTuple
from project import module_file, package, root

default_tests = ['reference','defects','callback','distributed','resume']
row = re.compile(r'^\| (\d+) \| ([\w./]+) \| `(.*?)` \| `(.*?)` \|(?: ([\w, ]*) \|)?$', re.M)

class Mutation(NamedTuple):
    no:int
    module:str # Relative to the package: `train.ols` or `train/ols`
    old:str    # The line as it stands, or a part of it
    new:str
    tests:list # Files that ought to notice, without `test_` and `.py`

def mutations():
    "Rows of the table in tests/README.md; a row without `tests` takes `default_tests`"
    for no,module,old,new,tests in row.findall((root/'tests/README.md').read_text(encoding='utf8')):
        old,new = old.replace('``', '`'),new.replace('``', '`')  # a backtick is written twice there
        yield Mutation(int(no), module, old, new, re.findall(r'\w+', tests) or default_tests)

def make_copy(folder):
    "What the tests need, without what is generated from it"
    for o in ('tests','tools','benchmarks',package.name):
        shutil.copytree(root/o, folder/o, ignore=shutil.ignore_patterns('__pycache__','runs'))
    for o in ('pyproject.toml','settings.ini'): shutil.copy(root/o, folder)

coverage_settings = """[run]
source_pkgs = ols_fastai
dynamic_context = test_function
"""

def pytest_run(folder, tests, *args, before=('-m','pytest')):
    env = {**os.environ, 'PYTHONPATH': str(folder)}  # before the installed package
    command = [sys.executable, *before, '-q', '-p', 'no:cacheprovider', *args, *tests]
    r = subprocess.run(command, cwd=folder/'tests', env=env, capture_output=True, text=True)
    if r.returncode in (0,1): return r.stdout,re.findall(r'^(?:FAILED|ERROR) (\S+)', r.stdout, re.M)
    if found := re.findall(r'^ERROR (\S+)', r.stdout, re.M): return r.stdout,found  # a module can't be imported
    sys.exit(f'pytest could not run {tests}:\n{r.stdout[-2000:]}\n{r.stderr[-2000:]}')

def test_file(name): return f'test_{name}.py'

class Seen:
    "What was seen of the tests of one file before anything is broken: the seconds of each, and the lines that it runs"
    def __init__(self, folder, name):
        data,settings = folder/f'{name}.coverage',folder/'coverage.ini'
        settings.write_text(coverage_settings)
        before = ('-m','coverage','run',f'--data-file={data}',f'--rcfile={settings}','-m','pytest')
        out,failed = pytest_run(folder, [test_file(name)], '--durations=0', '-vv', before=before)
        if failed: sys.exit(f'the tests fail before anything is broken: {failed}')
        self.seconds,self.data = defaultdict(float),CoverageData(data)
        phases = re.findall(r'^([\d.]+)s \w+ +(?:\S*/)?(\S+?)(?:\[.*)?$', out, re.M)  # set-up, call, tear-down
        for s,test in phases: self.seconds[test] += float(s)
        self.data.read()

    def running(self, fn, lines):
        "Seconds and name of the tests that run any of the lines of a file"
        contexts = self.data.contexts_by_lineno(str(fn))
        tests = {o.replace('.', '.py::', 1) for line in lines for o in contexts.get(line, [])}
        return [(self.seconds[o],o) for o in tests if o in self.seconds]

def broken_lines(text, at, old):
    "Numbers of the lines of a break, with that on which its statement begins"
    first = text.count('\n', 0, at)+1
    lines = set(range(first, first+old.count('\n')+1))
    starts = [o.lineno for o in ast.walk(ast.parse(text)) if isinstance(o, ast.stmt) and o.lineno<=first<=o.end_lineno]
    return lines|{max(starts)}

def broken(m, folder):
    "File of the module in the copy, its text, and the text with the line broken"
    fn = folder/module_file(m.module).relative_to(root)
    if not fn.exists(): sys.exit(f'{m.no}: no module {m.module}')
    text = fn.read_text(encoding='utf8')
    n = text.count(m.old)
    if n!=1: sys.exit(f'{m.no}: the line stands {n} times in {m.module}: {m.old}')
    return fn,text,text.replace(m.old, m.new)

def notices(m, folder, seen):
    "Tests that fail with the line broken"
    fn,text,new = broken(m, folder)
    lines = broken_lines(text, text.index(m.old), m.old)
    quickest = sorted(t for o in m.tests for t in seen[o].running(fn, lines))
    fn.write_text(new, encoding='utf8')
    try:
        failed = pytest_run(folder, [name for _,name in quickest], '-x')[1] if quickest else []
        return failed or pytest_run(folder, map(test_file, m.tests), '-x')[1]
    finally: fn.write_text(text, encoding='utf8')

def main(only):
    todo = [o for o in mutations() if not only or o.no in only]
    start,unseen = time.time(),[]
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        make_copy(folder)
        for m in todo: broken(m, folder)  # a table that doesn't fit the code is said first
        seen = {o: Seen(folder, o) for o in sorted({o for m in todo for o in m.tests})}
        for m in todo:
            t = time.time()
            failed = notices(m, folder, seen)
            verdict = 'red' if failed else 'NOT NOTICED'
            print(f'{m.no:3} {m.module:24} {verdict:11} {time.time()-t:4.0f} s  {" ".join(failed)}', flush=True)
            if not failed: unseen.append(m.no)
    print(f'{len(todo)} lines broken, {len(unseen)} not noticed, {(time.time()-start)/60:.0f} minutes')
    if unseen: sys.exit(f'not noticed: {unseen}')

if __name__=='__main__': main({int(o) for o in sys.argv[1:]})

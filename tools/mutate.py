"""Break the package by one line at a time, as tests/README.md says, and see the tests go red.

`python tools/mutate.py` does all of them, `python tools/mutate.py 3 7` two. Exit code 1 if one goes unnoticed."""
import os, re, shutil, subprocess, sys, tempfile, time
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

def run_tests(folder, tests):
    "Tests that fail"
    files = [f'test_{o}.py' for o in tests]
    env = {**os.environ, 'PYTHONPATH': str(folder)}  # before the installed package
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *files]
    r = subprocess.run(command, cwd=folder/'tests', env=env, capture_output=True, text=True)
    if r.returncode in (0,1): return re.findall(r'^(?:FAILED|ERROR) (\S+)', r.stdout, re.M)
    if found := re.findall(r'^ERROR (\S+)', r.stdout, re.M): return found  # the broken module can't be imported
    sys.exit(f'pytest could not run {files}:\n{r.stdout[-2000:]}\n{r.stderr[-2000:]}')

def broken(m, folder):
    "File of the module in the copy, its text, and the text with the line broken"
    fn = folder/module_file(m.module).relative_to(root)
    if not fn.exists(): sys.exit(f'{m.no}: no module {m.module}')
    text = fn.read_text(encoding='utf8')
    n = text.count(m.old)
    if n!=1: sys.exit(f'{m.no}: the line stands {n} times in {m.module}: {m.old}')
    return fn,text,text.replace(m.old, m.new)

def notices(m, folder):
    "Tests that fail with the line broken"
    fn,text,new = broken(m, folder)
    fn.write_text(new, encoding='utf8')
    try: return run_tests(folder, m.tests)
    finally: fn.write_text(text, encoding='utf8')

def main(only):
    todo = [o for o in mutations() if not only or o.no in only]
    start,unseen = time.time(),[]
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        make_copy(folder)
        for m in todo: broken(m, folder)  # a table that doesn't fit the code is said first
        used = sorted({o for m in todo for o in m.tests})
        if failed := run_tests(folder, used): sys.exit(f'the tests fail before anything is broken: {failed}')
        for m in todo:
            t = time.time()
            failed = notices(m, folder)
            verdict = 'red' if failed else 'NOT NOTICED'
            print(f'{m.no:3} {m.module:24} {verdict:11} {time.time()-t:4.0f} s  {" ".join(failed)}', flush=True)
            if not failed: unseen.append(m.no)
    print(f'{len(todo)} lines broken, {len(unseen)} not noticed, {(time.time()-start)/60:.0f} minutes')
    if unseen: sys.exit(f'not noticed: {unseen}')

if __name__=='__main__': main({int(o) for o in sys.argv[1:]})

"""What a change needs to hear in two minutes: `make quick`, or `python tools/quick.py 300` for five.

Ruff, the public signatures and tests/test_project.py always. Then what belongs to the files that differ from `main` (on
`main`: from the last commit): tests that changed, notebooks that changed, tests that import a changed module or that
the table in tests/README.md names for it. Two run at a time; what the time does not suffice for is said."""
import os, re, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mutate import mutations
from project import package, root

def git(*args): return subprocess.run(['git', *args], cwd=root, capture_output=True, text=True)

def changed():
    "Files that differ from `main`, new ones too, relative to the top folder"
    refs = [o for o in ('main','origin/main') if git('rev-parse', '--verify', '--quiet', o).returncode==0]
    base = git('merge-base', 'HEAD', refs[0]).stdout.strip() if refs else 'HEAD'
    listed = git('diff', '--name-only', base).stdout + git('ls-files', '--others', '--exclude-standard').stdout
    return sorted({Path(o) for o in listed.splitlines() if (root/o).exists()})

def module_of(fn):
    "Dotted name of a file of the package, relative to it: `train.ols`"
    return '.'.join(fn.with_suffix('').parts[1:])

def imports(text, module):
    "Whether a test's text imports a module of the package"
    parent,_,leaf = f'{package.name}.{module}'.rpartition('.')
    parent = re.escape(parent)
    return re.search(rf'\b{parent}\.{leaf}\b|from {parent} import [^\n]*\b{leaf}\b', text) is not None

def tests_of(module):
    "Files of tests that import a module or that the table of breaks names for it"
    named = {f'tests/test_{o}.py' for m in mutations() if m.module.replace('/', '.')==module for o in m.tests}
    files = (root/'tests').glob('test_*.py')
    return named|{f'tests/{o.name}' for o in files if imports(o.read_text(encoding='utf8'), module)}

def selection(files):
    "Tests and notebooks that a change of `files` needs: the changed ones first"
    modules = [module_of(o) for o in files if o.parts[0]==package.name and o.suffix=='.py' and o.name[0]!='_']
    tests = [str(o) for o in files if o.match('tests/test_*.py')]
    for m in modules: tests += sorted(tests_of(m)-set(tests))
    notebooks = [str(o) for o in files if o.suffix=='.ipynb']
    apart = {'tests/test_project.py','tests/test_wheel.py','tests/test_site.py'}  # done already; far too long
    return [o for o in tests if o not in apart], notebooks

def jobs():
    "(title, command) in the order in which they start"
    py = [sys.executable, '-m']
    yield 'ruff', [*py, 'ruff', 'check', '--quiet', '.']
    yield 'project', [*py, 'pytest', 'tests/test_project.py']
    yield 'signatures', [sys.executable, 'tools/signatures.py']
    tests,notebooks = selection(changed())
    for o in tests: yield o, [*py, 'pytest', '-x', o]
    for o in notebooks: yield o, [str(Path(sys.executable).parent/'nbdev_test'), '--do_print', '--path', o]

def do(title, command, deadline):
    "Run a command, until the deadline at most. Whether it failed"
    left = deadline-time.time()
    if left<=0: return print(f'no time     {title}', flush=True)
    t = time.time()
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    p = subprocess.Popen(command, cwd=root, env=env, start_new_session=True, **pipes)
    try: out,_ = p.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)  # with the processes that it has started
        p.communicate()
        return print(f'unfinished  {title}', flush=True)
    verdict = 'FAILED' if p.returncode else 'passed'
    print(f'{verdict:10}  {title}  {time.time()-t:.0f} s', flush=True)
    if p.returncode: print(out[-6000:], flush=True)
    return p.returncode!=0

def main(seconds):
    deadline = time.time()+seconds
    with ThreadPoolExecutor(2) as pool: failed = list(pool.map(lambda job: do(*job, deadline), jobs()))
    sys.exit(any(failed))

if __name__=='__main__': main(int(sys.argv[1]) if sys.argv[1:] else 120)

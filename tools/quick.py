"""What a change needs to hear in two minutes: `make quick`, or `python tools/quick.py 300` for five.

Ruff, the public signatures and tests/test_project.py always. Then what belongs to the files that differ from the last
commit, or if none does, from `main`: tests and notebooks that changed, then tests that import a changed module or that
the table in tests/README.md names for it. Two at a time. Exit code 1 if one fails, 3 if the time did not suffice."""
import os, re, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mutate import mutations
from project import package, root

def git(*args): return subprocess.run(['git', *args], cwd=root, capture_output=True, text=True)

def differing(base):
    "Files that differ from a commit, new ones too, relative to the top folder"
    listed = git('diff', '--name-only', base).stdout + git('ls-files', '--others', '--exclude-standard').stdout
    return sorted({Path(o) for o in listed.splitlines() if (root/o).exists()})

def changed():
    "What is not committed; if nothing, what differs from `main`"
    refs = [o for o in ('main','origin/main') if git('rev-parse', '--verify', '--quiet', o).returncode==0]
    base = git('merge-base', 'HEAD', refs[0]).stdout.strip() if refs else 'HEAD'
    return differing('HEAD') or differing(base)

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
    "Tests and notebooks that a change of `files` needs, in the order in which they should run"
    modules = [module_of(o) for o in files if o.parts[0]==package.name and o.suffix=='.py' and o.name[0]!='_']
    tests = [str(o) for o in files if o.match('tests/test_*.py')]
    notebooks = [str(o) for o in files if o.suffix=='.ipynb']
    if modules: notebooks.append('nbs/90_all.ipynb')  # it holds every public name, a new module's too
    others = sorted({t for m in modules for t in tests_of(m)}-set(tests))
    apart = {'tests/test_project.py','tests/test_wheel.py','tests/test_site.py'}  # done already; far too long
    return [o for o in dict.fromkeys(tests+notebooks+others) if o not in apart]

def jobs():
    "(title, command) in the order in which they start"
    py = [sys.executable, '-m']
    yield 'ruff', [*py, 'ruff', 'check', '--quiet', '.']
    yield 'project', [*py, 'pytest', 'tests/test_project.py']
    yield 'signatures', [sys.executable, 'tools/signatures.py']
    nbdev_test = str(Path(sys.executable).parent/'nbdev_test')
    for o in selection(changed()):
        yield o, [nbdev_test, '--do_print', '--path', o] if o.endswith('.ipynb') else [*py, 'pytest', '-x', o]

def do(title, command, deadline):
    "Run a command, until the deadline at most. Whether it failed; None if there was no time to tell"
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
    untold = failed.count(None)
    print(f"{failed.count(False)} passed, {failed.count(True)} failed, {untold} not run to the end", flush=True)
    if untold: print(f'This is no all-clear: python tools/quick.py {4*seconds} has more time.', flush=True)
    sys.exit(1 if any(failed) else 3 if untold else 0)

if __name__=='__main__': main(int(sys.argv[1]) if sys.argv[1:] else 120)

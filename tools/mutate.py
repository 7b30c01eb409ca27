"Break the package by one line at a time, as tests/README.md says, and see the tests go red."
import os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).parent.parent
suite = ['test_reference.py','test_defects.py','test_callback.py','test_distributed.py','test_resume.py']

def mutations():
    for row in re.findall(r'^\| (\d+) \| (\w+) \| `(.*?)` \| `(.*?)` \|$', (root/'tests/README.md').read_text(), re.M):
        yield int(row[0]), row[1], *(o.replace('``', '`') for o in row[2:])

def run(copy):
    env = {**os.environ, 'PYTHONPATH': str(copy)}   # before the installed package
    return subprocess.run([sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *suite], cwd=copy/'tests', env=env, capture_output=True, text=True)

def main(only):
    unseen = []
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)
        for o in ('ols_fastai','tests'): shutil.copytree(root/o, copy/o, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(root/'pyproject.toml', copy)
        if run(copy).returncode: sys.exit('the tests fail before anything is broken')
        for no,module,old,new in mutations():
            if only and no not in only: continue
            fn = copy/'ols_fastai'/f'{module}.py'
            text = fn.read_text()
            if text.count(old)!=1: sys.exit(f'{no}: the line stands {text.count(old)} times in {module}.py: {old}')
            fn.write_text(text.replace(old, new))
            r = run(copy)
            fn.write_text(text)
            failed = re.findall(r'^(?:FAILED|ERROR) (\S+)', r.stdout, re.M)
            print(f'{no:3} {module:12} {"red" if failed else "NOT NOTICED"}  {" ".join(failed)}', flush=True)
            if not failed: unseen.append(no)
    if unseen: sys.exit(f'not noticed: {unseen}')

if __name__=='__main__': main({int(o) for o in sys.argv[1:]})

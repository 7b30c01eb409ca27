"What a stranger meets first: the sdist, the lines of the README, the citation."
import json, os, re, subprocess, sys, tarfile
from configparser import ConfigParser
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
cfg = ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini')
cfg = cfg['DEFAULT']

def run(*args, cwd=root, **env):
    r = subprocess.run([str(o) for o in args], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert r.returncode==0, f"{' '.join(map(str, args))}\n{r.stdout}\n{r.stderr}"
    return r.stdout

@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    out = tmp_path_factory.mktemp('sdist')
    run(sys.executable, '-c', f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})")
    return next(out.glob('*.tar.gz'))

def test_sdist_holds_just_the_package_and_what_builds_it(sdist):
    names = {o.split('/', 1)[1] for o in tarfile.open(sdist).getnames() if '/' in o}
    top = {o.split('/')[0] for o in names}
    assert top=={'ols_fastai','ols_fastai.egg-info','LICENSE','MANIFEST.in','PKG-INFO','README.md','pyproject.toml','settings.ini','setup.cfg','setup.py'}
    assert {o for o in names if o.endswith('.py')}=={f'ols_fastai/{o.name}' for o in (root/'ols_fastai').glob('*.py')}|{'setup.py'}

def readme_blocks(): return re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(), re.S)

def test_the_readme_runs_where_the_sdist_is_installed(sdist, tmp_path):
    "In a venv of its own that borrows the dependencies but not this checkout. One epoch instead of three"
    run(sys.executable, '-m', 'venv', tmp_path/'v')
    py = tmp_path/'v/bin/python'
    run(py, '-m', 'pip', 'install', '--quiet', '--no-deps', sdist)
    here = run(py, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    borrowed = [o for o in sys.path if o.endswith('site-packages')]
    (Path(here)/'borrowed.pth').write_text('\n'.join(borrowed))  # its own packages come first, and an editable install's .pth is not processed
    imports,lines = readme_blocks()[:2]
    assert 'OLSCallback' in lines and 'fit_one_cycle(3,' in lines
    (tmp_path/'use.py').write_text(f"{imports}\n{lines.replace('fit_one_cycle(3,', 'fit_one_cycle(1,')}\nimport ols_fastai\nprint(ols_fastai.__file__)\nprint(len(interp.table()))")
    *_,fn,n = run(py, tmp_path/'use.py', cwd=tmp_path, PYTHONPATH='', OLS_FASTAI_CACHE=os.environ.get('OLS_FASTAI_CACHE', str(root/'.cache'))).splitlines()
    assert Path(fn).is_relative_to(tmp_path), fn
    assert int(n)>0

def test_every_public_signature_is_true_and_described():
    "`make lint` says the same"
    from signatures import misfits, undescribed
    assert not misfits()+undescribed()

def test_citation_has_this_version_and_both_papers():
    text = (root/'CITATION.cff').read_text()
    assert re.search(r'^version: (.*)$', text, re.M)[1]==cfg['version']
    assert 'doi: 10.1109/TIP.2021.3089942\n' in text and 'doi: 10.1051/bioconf/202520401019\n' in text
    assert text.count('family-names')==7+5

def test_workflow_runs_every_python_that_the_package_claims():
    text = (root/'.github/workflows/test.yml').read_text()
    pythons = json.loads(re.search(r'python: (\[.*\])', text)[1])
    assert pythons[0]==cfg['min_python'] and pythons==[f'3.{i}' for i in range(10, 10+len(pythons))] and 'run: make test\n' in text

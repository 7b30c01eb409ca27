"What a stranger installs: the sdist, the wheel made of it, and the wheel in a venv that borrows nothing but torch."
import re, sys, tarfile, zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path
import pytest
from packaging.utils import canonicalize_name
from project import root, run, settings, sources

# ---- what is in them

@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    out = tmp_path_factory.mktemp('sdist')
    run(sys.executable, '-c', f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})")
    return next(out.glob('*.tar.gz'))

@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    "Made of the sdist: what an older build left in this folder can't get into it"
    out = tmp_path_factory.mktemp('wheel')
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', out, sdist)
    return next(out.glob('*.whl'))

def test_sdist_holds_just_the_package_and_what_builds_it(sdist):
    names = {o.split('/', 1)[1] for o in tarfile.open(sdist).getnames() if '/' in o}
    made = {'ols_fastai.egg-info','PKG-INFO','setup.cfg'}
    kept = {'LICENSE','MANIFEST.in','README.md','pyproject.toml','settings.ini'}
    assert {o.split('/')[0] for o in names}=={'ols_fastai','setup.py'}|made|kept
    assert {o for o in names if o.endswith('.py')}=={'setup.py',*sources()}

def test_wheel_holds_just_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {o.split('/')[0] for o in names if '.dist-info/' not in o}=={'ols_fastai'}
    assert {o for o in names if o.endswith('.py')}==set(sources())

def test_settings_reach_the_wheel(wheel):
    cfg,z = settings(),zipfile.ZipFile(wheel)
    meta = z.read(next(o for o in z.namelist() if o.endswith('/METADATA'))).decode()
    assert f"Version: {cfg['version']}\n" in meta and f"Requires-Python: >={cfg['min_python']}\n" in meta
    needs = [o.split(':')[1].strip() for o in meta.splitlines() if o.startswith('Requires-Dist:')]
    assert [o for o in needs if 'extra ==' not in o]==cfg['requirements'].split()
    for extra in ('demo','dicom','dev','docs'):
        assert sum(f'extra == "{extra}"' in o for o in needs)==len(cfg[f'{extra}_requirements'].split()), extra

# ---- at work in a venv of its own

borrowed = re.compile(r'torch|torchvision|(pytorch-)?triton.*|(nvidia|cuda)-.*')  # 5 GB: all else is installed by pip

def borrow(site):
    "Link torch, torchvision and the wheels of CUDA into `site`. Their versions, which pip must leave as they are"
    pins = []
    for d in distributions():
        if not borrowed.fullmatch(canonicalize_name(d.name)): continue
        pins.append(f'{d.name}=={d.version}')
        tops = {o.parts[0] for o in d.files} - {'..','__pycache__'}
        for top in tops:  # several wheels share a folder: nvidia, cuda
            if not (site/top).exists(): (site/top).symlink_to(d.locate_file(top))
    return pins

class Venv:
    "A venv in `folder` with the wheel but no extra, on the newest fastai (with fastcore 2) or on the versions of here"
    def __init__(self, folder, wheel, newest):
        self.folder,self.wheel = folder,wheel
        run(sys.executable, '-m', 'venv', folder)
        site = Path(self.python('import sysconfig; print(sysconfig.get_path("purelib"))').strip())
        pins = borrow(site)
        if not newest: pins = [f'{d.name}=={d.version}' for d in distributions() if d.name not in ('ols_fastai','pip')]
        (folder/'pins.txt').write_text('\n'.join(pins))
        self.install('--upgrade', 'pip')  # the one that Python brings takes three times as long to choose versions
        self.install(wheel, *(['fastcore>=2'] if newest else []))

    def install(self, *what):
        "From another folder than this one, whose egg-info would make pip think that the package is installed"
        self.run('python', '-m', 'pip', 'install', '--quiet', '--no-compile', '-c', self.folder/'pins.txt', *what)

    def run(self, command, *args, **env):
        "Nothing is compiled by pip, so that each module is when it is first used, whatever the environment says"
        env = dict(PYTHONPATH='', PYTHONDONTWRITEBYTECODE='', **env)
        return run(self.folder/'bin'/command, *args, cwd=self.folder, **env)

    def python(self, code, **env): return self.run('python', '-c', code, **env)

@pytest.fixture(scope='module')
def venvs(wheel, tmp_path_factory):
    "Both, made at once"
    folders = {o: tmp_path_factory.mktemp(o) for o in ('newest','dev')}
    with ThreadPoolExecutor(2) as pool:
        jobs = {o: pool.submit(Venv, folder, wheel, o=='newest') for o,folder in folders.items()}
    return {o: job.result() for o,job in jobs.items()}

@pytest.fixture(params=['newest','dev'])
def venv(request, venvs): return venvs[request.param]

where = """
import sys, torch
from importlib.metadata import version
from ols_fastai.all import *
import fastai, ols_fastai
assert OLSCallback and ols_compare
print(*(version(o) for o in ('fastai','fastcore','torch')))
print(*sys.path[1:], *(o.__file__ for o in (torch,fastai,ols_fastai)), sep='\\n')
"""

def test_all_of_the_package_imports_without_extras(venv):
    versions,*paths = venv.python(where).splitlines()
    print('fastai, fastcore, torch:', versions)
    outside = [o for o in paths if not Path(o).is_relative_to(venv.folder)]
    standard = [sys.base_prefix, sys.base_exec_prefix]
    assert all(any(Path(o).is_relative_to(p) for p in standard) and 'site-packages' not in o for o in outside), outside

def test_the_commands_of_the_package_and_of_accelerate_start(venv):
    assert '--methods' in venv.run('ols_compare', '--help')
    assert settings()['version'] in venv.run('ols_compare', '--version')
    assert (venv.folder/'bin/accelerate').exists()

def readme_blocks(): return re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(), re.S)

def test_the_lines_of_the_readme_run(venv):
    "One epoch instead of three, on a data set that the venv's own packages make"
    imports,lines = readme_blocks()[:2]
    assert 'OLSCallback' in lines and 'fit_one_cycle(3,' in lines
    venv.install(f'{venv.wheel}[demo,dicom]')
    code = f"{imports}\n{lines.replace('fit_one_cycle(3,', 'fit_one_cycle(1,')}\nprint(len(interp.table()))"
    *_,n = venv.python(code, OLS_FASTAI_CACHE=str(venv.folder/'cache')).splitlines()
    assert int(n)>0

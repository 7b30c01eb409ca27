"The repository itself: what is generated agrees with its source, and the wheel holds the package and nothing else."
import hashlib, json, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest
from readme import readme, root

def run(*args, cwd=root):
    r = subprocess.run(args, cwd=cwd, capture_output=True, text=True)
    assert r.returncode==0, f"{' '.join(args)}\n{r.stdout}\n{r.stderr}"
    return r.stdout
def package(): return {o.name: hashlib.sha256(o.read_bytes()).hexdigest() for o in sorted((root/'ols_fastai').glob('*.py'))}
def notebooks(): return sorted(o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

def test_export_leaves_no_difference():
    before = package()
    run(sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()')
    assert package()==before, 'run `make export` and commit the result'

def test_readme_is_its_notebook():
    assert (root/'README.md').read_text()==readme(), 'run `make readme` and commit the result'

@pytest.mark.parametrize('fn', notebooks(), ids=lambda o: o.stem)
def test_notebook_is_clean_and_has_outputs(fn):
    nb = json.loads(fn.read_text())
    code = [o for o in nb['cells'] if o['cell_type']=='code']
    assert not any(o['metadata'] for o in nb['cells']), 'cell metadata: run nbdev_clean'
    assert all(o['execution_count'] is None for o in code), 'execution counts: run nbdev_clean'
    assert any(o['outputs'] for o in code), 'no outputs: run `make notebooks`'
    assert not any(out['output_type']=='error' for o in code for out in o['outputs'])

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', str(out), '.')
    return next(out.glob('*.whl'))

def test_wheel_holds_just_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {o.split('/')[0] for o in names if '.dist-info/' not in o}=={'ols_fastai'}
    assert {o for o in names if o.endswith('.py')}=={f'ols_fastai/{o}' for o in package()}

def test_settings_reach_the_wheel(wheel):
    cfg = ConfigParser(delimiters=['=']); cfg.read(root/'settings.ini'); cfg = cfg['DEFAULT']
    z = zipfile.ZipFile(wheel)
    meta = z.read(next(o for o in z.namelist() if o.endswith('/METADATA'))).decode()
    assert f"Version: {cfg['version']}\n" in meta and f"Requires-Python: >={cfg['min_python']}\n" in meta
    needs = [o.split(':')[1].strip() for o in meta.splitlines() if o.startswith('Requires-Dist:')]
    assert [o for o in needs if 'extra ==' not in o]==cfg['requirements'].split()
    for extra in ('demo','dicom','dev'): assert sum(f'extra == "{extra}"' in o for o in needs)==len(cfg[f'{extra}_requirements'].split())

def test_installed_wheel_runs_the_callback(wheel, tmp_path):
    "In a venv of its own, that borrows the installed dependencies but not this checkout"
    run(sys.executable, '-m', 'venv', str(tmp_path/'v'))
    py = tmp_path/'v/bin/python'
    run(str(py), '-m', 'pip', 'install', '--quiet', '--no-deps', str(wheel))
    site = next(o for o in sys.path if o.endswith('site-packages'))
    here = run(str(py), '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    (Path(here)/'borrowed.pth').write_text(site)   # after the venv's own packages, without processing our editable .pth
    script = tmp_path/'use.py'
    script.write_text('''
import ols_fastai, torch
from fastai.vision.all import *
from torch.utils.data import TensorDataset
from ols_fastai.callback import OLSCallback
ds = TensorDataset(torch.randn(64,4), torch.arange(64)%3)
learn = Learner(DataLoaders.from_dsets(ds, ds, bs=16, device='cpu', num_workers=0), nn.Linear(4,3), loss_func=CrossEntropyLossFlat())
cb = OLSCallback()
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, cbs=cb)
assert torch.allclose(cb.S.sum(1), torch.ones(3)) and len(cb.history)==2
print(ols_fastai.__file__)
''')
    out = run(str(py), '-P' if sys.version_info>=(3,11) else '-I', str(script), cwd=tmp_path).splitlines()[-1]
    assert Path(out).is_relative_to(tmp_path), out

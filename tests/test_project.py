"The repository itself: what is generated agrees with its source, what is imported is required, no exception is stale."
import ast, hashlib, json, re, sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from density import code_lines, long_files
from mutate import mutations
from project import module_file, notebooks, package, root, run, settings, sources
from quick import imports as imports_module, module_of, selection
from readme import readme

def hashes(): return {o: hashlib.sha256((root/o).read_bytes()).hexdigest() for o in sources()}

def test_export_leaves_no_difference():
    before = hashes()
    run(sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()')
    assert hashes()==before, 'run `make export` and commit the result'

def test_readme_is_its_notebook():
    assert (root/'README.md').read_text()==readme(), 'run `make readme` and commit the result'

def test_readme_has_every_notebook():
    missing = [o.stem for o in notebooks() if o.stem!='index' and f'{o.name})' not in readme()]
    assert not missing, f'index.ipynb has no link to {missing}'

@pytest.mark.parametrize('fn', notebooks(), ids=lambda o: o.stem)
def test_notebook_is_clean_and_has_outputs(fn):
    nb = json.loads(fn.read_text())
    code = [o for o in nb['cells'] if o['cell_type']=='code']
    assert not any(o['metadata'] for o in nb['cells']), 'cell metadata: run nbdev_clean'
    assert all(o['execution_count'] is None for o in code), 'execution counts: run nbdev_clean'
    assert any(o['outputs'] for o in code), 'no outputs: run `make notebooks`'
    assert not any(out['output_type']=='error' for o in code for out in o['outputs'])
    # a report goes on without a section that fails, and a notebook without a function that it defines too late
    assert 'NameError' not in json.dumps([o['outputs'] for o in code])

@pytest.mark.parametrize('fn', [o for o in notebooks() if o.parent.name=='tutorials'], ids=lambda o: o.stem)
def test_tutorials_delete_nothing(fn):
    "Readers put their own folders into them: what is temporary goes by itself"
    code = '\n'.join(''.join(o['source']) for o in json.loads(fn.read_text())['cells'] if o['cell_type']=='code')
    assert not re.search(r'rmtree|unlink|os\.remove\(|mkdtemp', code)

# ---- what is imported is required

def names(node):
    "Top-level packages that an import brings, but for relative ones"
    if isinstance(node, ast.Import): return {o.name.split('.')[0] for o in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level: return {node.module.split('.')[0]}
    return set()

def imports(text):
    "Foreign packages that a module imports whenever it is imported, and those that a function of it imports"
    tree = ast.parse(text)
    functions = [o for o in ast.walk(tree) if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {node for f in functions for node in ast.walk(f)}
    always = set().union(*(names(o) for o in ast.walk(tree) if o not in late))
    at_times = set().union(*(names(o) for o in late))
    own = {*sys.stdlib_module_names, package.name}
    return always-own, at_times-own

def required(*keys):
    "Distributions that settings.ini names under `keys`"
    return {canonicalize_name(Requirement(o).name) for key in keys for o in settings()[key].split()}

distributions = cache(packages_distributions)  # takes seconds

def missing(imported, declared):
    "Imported packages of which no distribution is declared"
    brings = {o: {canonicalize_name(d) for d in distributions().get(o, [o])} for o in imported}
    return sorted(o for o in imported if not brings[o] & declared)

some_imports = """
import os, cv2
from PIL.Image import open
from .core import *
def f():
    from pydicom import dcmread
    def g(): import a.b
"""

def test_imports_are_found():
    assert imports(some_imports)==({'cv2','PIL'}, {'pydicom','a'})
    assert missing({'cv2','PIL','pydicom'}, {'opencv-python'})==['PIL','pydicom']

def test_every_import_is_a_requirement():
    "Nothing is left to what fastai or torch happen to bring; what only a function imports may be an extra"
    plain,extra = required('requirements'),required('requirements', 'demo_requirements', 'dicom_requirements')
    found = [imports((root/o).read_text()) for o in sources()]
    assert not missing(set().union(*(o for o,_ in found)), plain)
    assert not missing(set().union(*(o for _,o in found)), extra)

def test_accelerate_is_required_where_fastai_distributed_is_used():
    "fastai.distributed imports it if it is there, and can't be imported without it"
    used = any('fastai.distributed' in (root/o).read_text() for o in sources())
    assert not used or 'accelerate' in required('requirements')

# ---- lists that must not outlive their reason

def test_no_file_is_excused_for_long_lines_without_need():
    "`make lint` says which files are too long; here, which exceptions have become needless"
    text = (root/'pyproject.toml').read_text()
    assert 'line-length = 120\n' in text and '"E501",' not in text
    excused = re.findall(r'^"(\w+/[\w./]+\.py)" = \["E501"\]', text, re.M)
    assert not set(excused)-set(long_files()), 'take these off the list in pyproject.toml'

def test_code_lines_are_counted():
    assert code_lines('# a\n\nx = 1  # b\n  # c\n"d"')==['x = 1  # b','"d"']

@pytest.mark.parametrize('m', list(mutations()), ids=lambda o: str(o.no))
def test_each_line_to_break_stands_once(m):
    assert module_file(m.module).read_text().count(m.old)==1 and m.old!=m.new
    assert all((root/f'tests/test_{o}.py').exists() for o in m.tests)

def test_each_row_of_the_table_is_read():
    table = (root/'tests/README.md').read_text().split('## Do the tests notice?')[1]
    assert len(re.findall(r'^\| \d+ \|', table, re.M))==len(list(mutations()))

def test_quick_knows_what_a_test_imports():
    assert module_of(Path('ols_fastai/train/ols.py'))=='train.ols' and module_of(Path('ols_fastai/core.py'))=='core'
    assert imports_module('from ols_fastai.train.ols import *', 'train.ols')
    assert imports_module('from ols_fastai.train import targets, ols', 'train.ols')
    assert not imports_module('from ols_fastai.train.ols_more import *', 'train.ols')

def test_quick_looks_whether_a_changed_module_is_in_all():
    assert 'nbs/90_all.ipynb' in selection([Path('ols_fastai/calibration/new.py')])
    assert 'nbs/90_all.ipynb' not in selection([Path('nbs/tutorials/deploy.ipynb')])

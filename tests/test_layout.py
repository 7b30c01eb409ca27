"The modules are in the order of the data: each imports lower numbers alone, and each folder of the package earlier folders alone."
import ast, builtins, dis, re, types
from importlib import import_module
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
folders = ['data','train','calibration','compare']

def notebooks():
    "Module -> number of its notebook"
    out = {}
    for fn in (root/'nbs').glob('[0-9]*.ipynb'):
        number,module = fn.stem.split('_', 1)
        out[module] = int(number)
    return out

def imports(fn, module):
    "Modules of the package that a module imports anywhere, in functions too"
    package = module.split('.')[:-1]
    for o in ast.walk(ast.parse(fn.read_text())):
        if not isinstance(o, ast.ImportFrom): continue
        if not o.level and not (o.module or '').startswith('ols_fastai'): continue
        base = package[:len(package)-o.level+1] if o.level else []
        name = (o.module or '').removeprefix('ols_fastai').strip('.')
        found = '.'.join([*base, *filter(None, [name])])
        yield from ([found] if found in numbers else ['.'.join(filter(None, [found,a.name])) for a in o.names])

numbers = notebooks()
modules = {k: root/'ols_fastai'/f"{k.replace('.', '/')}.py" for k in numbers}

def test_no_number_stands_twice():
    assert len(set(numbers.values()))==len(numbers), sorted(numbers.items(), key=lambda o: o[1])

def test_modules_import_lower_numbers_alone():
    wrong = [f'{k} ({numbers[k]}) imports {o} ({numbers[o]})' for k,fn in modules.items() for o in imports(fn, k) if o in numbers and numbers[o]>=numbers[k] and not (k=='compare.cli' and o=='all')]
    assert not wrong, wrong

def test_folders_import_earlier_folders_alone():
    place = {o: i for i,o in enumerate(folders)}
    wrong = [f'{k} imports {o}' for k,fn in modules.items() for o in imports(fn, k)
             if k.split('.')[0] in place and o.split('.')[0] in place and place[o.split('.')[0]]>place[k.split('.')[0]]]
    assert not wrong, wrong

def test_every_module_has_its_notebook():
    there = {'.'.join(o.relative_to(root/'ols_fastai').with_suffix('').parts) for o in (root/'ols_fastai').rglob('*.py') if not re.match('_', o.name)}
    assert there==set(numbers)

def globals_of(code):
    "Names that a function, and those inside it, look for in their module"
    found = {o.argval for o in dis.get_instructions(code) if o.opname=='LOAD_GLOBAL'}
    return found.union(*(globals_of(o) for o in code.co_consts if isinstance(o, types.CodeType)))

@pytest.mark.parametrize('name', modules)
def test_every_name_is_known(name):
    "Names come by import *, so that no linter sees one that is missing"
    code = compile(modules[name].read_text(encoding='utf8'), name, 'exec')
    inner = set().union(*(globals_of(o) for o in code.co_consts if isinstance(o, types.CodeType)))
    assert not inner-set(vars(import_module(f'ols_fastai.{name}')))-set(dir(builtins))

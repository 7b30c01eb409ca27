"""Runs a notebook against the exported package: `coverage run tools/cover.py nbs/08_calibration.ipynb`.

`nbdev_test` runs the exported cells themselves, so that coverage.py never sees the package's own lines. Here such cells
are left out, and the names that they would define are the module's."""
import contextlib, io, os, re, sys, tempfile
from importlib import import_module
from pathlib import Path
from symtable import symtable
import nbformat
from IPython.display import display

def default_exp(cells):
    "Dotted name of the module that a notebook is the source of, or None"
    found = re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(cells), re.M)
    return found and found[1]

def defined(source):
    "Names that a cell assigns or imports; those of a star import are not to be seen"
    return {o.get_name() for o in symtable(source, 'cell', 'exec').get_symbols() if o.is_assigned() or o.is_imported()}

def take_names(source, mod, names):
    "Into `names`: what an exported cell would define, and the module's other names, but for the notebook's own"
    made = defined(source)
    for k,v in vars(import_module(f'ols_fastai.{mod}')).items():
        if not k.startswith('__') and (k in made or k not in names): names[k] = v

def run_cell(source, fn, names):
    "From a file, so that `inspect` finds the source of what the cell defines; a notebook's magics show pictures only"
    source = re.sub(r'^%.*$', '', source, flags=re.M)
    fn.write_text(source, encoding='utf8')
    exec(compile(source, str(fn), 'exec'), names)

def run(fn, folder):
    os.chdir(fn.parent)
    cells = [c.source for c in nbformat.read(fn, 4).cells if c.cell_type=='code']
    mod = default_exp(cells)
    names = {'__name__':'__main__', 'display':display}
    for i,source in enumerate(cells):
        if re.search(r'^#\|\s*(default_exp|slow|eval:\s*false)|nbdev_export\(', source, re.M): continue
        if re.search(r'^#\|\s*exporti?\b', source, re.M): take_names(source, mod, names)
        else: run_cell(source, folder/f'{fn.stem}-code-cell-{i}.py', names)

if __name__=='__main__':
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), tempfile.TemporaryDirectory() as tmp:
            run(Path(sys.argv[1]).resolve(), Path(tmp))
    except BaseException:
        print(out.getvalue()[-2000:], file=sys.stderr)
        raise

"""Runs notebooks against the exported package: `coverage run tests/cover.py nbs/08_calibration.ipynb`.

`nbdev_test` runs the exported cells themselves, so that the package's own lines are never seen by coverage.py. Here such cells are left out, and the names
that they would define are the module's."""
import contextlib, io, os, re, sys
from importlib import import_module
from pathlib import Path
from symtable import symtable
import nbformat
from IPython.display import display

def run(fn):
    os.chdir(fn.parent)
    cells = [c.source for c in nbformat.read(fn, 4).cells if c.cell_type=='code']
    mod = next((m[1] for o in cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', o, re.M))), None)
    names = {'__name__':'__main__', 'display':display}
    for i,source in enumerate(cells):
        if re.search(r'^#\|\s*(default_exp|slow|eval:\s*false)|nbdev_export\(', source, re.M): continue
        if re.search(r'^#\|\s*exporti?\b', source, re.M):
            made = {o.get_name() for o in symtable(source, fn.name, 'exec').get_symbols() if o.is_assigned() or o.is_imported()}
            # a star import has no names to be seen here: all of the module's, unless the notebook itself has made something else of one
            names.update({k:v for k,v in vars(import_module(f'ols_fastai.{mod}')).items() if not k.startswith('__') and (k in made or k not in names)})
        else: exec(compile(source, f'{fn.name}, code cell {i}', 'exec'), names)

if __name__=='__main__':
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out): run(Path(sys.argv[1]).resolve())
    except BaseException:
        print(out.getvalue()[-2000:], file=sys.stderr)
        raise

"Public signatures: `python tests/signatures.py` lists what is missing in them, and ends with exit code 1 if anything is."
import inspect, sys, typing
from importlib import import_module
from pathlib import Path
from beartype.door import is_bearable
from beartype import BeartypeConf
from fastai.callback.core import event
from fastcore.docments import docments

root = Path(__file__).parent.parent
numbers = BeartypeConf(is_pep484_tower=True)  # an int will do for a float

def public():
    "(name, callable) of every public function and class, and of the methods that the package gives a class"
    for fn in sorted((root/'ols_fastai').glob('[!_]*.py')):
        if fn.stem=='all': continue
        m = import_module(f'ols_fastai.{fn.stem}')
        for k in m.__all__:
            o = getattr(m, k)
            if inspect.isfunction(o) and o.__module__==m.__name__: yield f'{fn.stem}.{k}',o
            if not inspect.isclass(o): continue
            if '__init__' in vars(o): yield f'{fn.stem}.{k}',o.__init__
            theirs = {name for b in o.__mro__ if not b.__module__.startswith('ols_fastai') for name in vars(b)} | {'encodes','decodes'}  # what PyTorch and fastai settle
            for name in vars(o):
                f = getattr(o, name)
                if name[0]!='_' and not hasattr(event, name) and name not in theirs and inspect.isroutine(f) and f.__module__.startswith('ols_fastai'): yield f'{fn.stem}.{k}.{name}',f

def parameters(f): return [o for o in inspect.signature(f).parameters.values() if o.name not in ('self','cls') and o.kind not in (o.VAR_POSITIONAL,o.VAR_KEYWORD)]

def misfits():
    "Types that can't be resolved, and defaults that are not of the type they stand beside"
    res = []
    for name,f in public():
        try: hints = typing.get_type_hints(getattr(f, '__func__', f))
        except Exception as e:
            res.append(f'{name}: {e}')
            continue
        res += [f'{name}: {o.name}={o.default!r} is no {hints[o.name]}' for o in parameters(f)
                if o.name in hints and o.default is not o.empty and not is_bearable(o.default, hints[o.name], conf=numbers)]
    return res

def undescribed():
    "What has no docstring, and parameters without a comment"
    res = []
    for name,f in public():
        mod,cls,*_ = name.split('.')
        owner = getattr(import_module(f'ols_fastai.{mod}'), cls)
        if not inspect.getdoc(owner if f.__name__=='__init__' else f): res.append(f'{name}: no docstring')
        d = docments(f, full=True)
        missing = [o.name for o in parameters(f) if not d.get(o.name, {}).get('docment')]
        if missing: res.append(f"{name}: no comment for {', '.join(missing)}")
    return res

if __name__=='__main__':
    found = misfits()+undescribed()
    print('\n'.join(found) or 'public signatures: all well')
    sys.exit(bool(found))

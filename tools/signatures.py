"Public signatures: `python tools/signatures.py` lists what is missing in them; exit code 1 if anything is."
import inspect, sys, typing
from dataclasses import is_dataclass
from importlib import import_module
from beartype.door import is_bearable
from beartype import BeartypeConf
from fastai.callback.core import event
from fastcore.docments import docments
from project import modules

pkg = 'ols_fastai'
numbers = BeartypeConf(is_pep484_tower=True)  # an int will do for a float

def inherited(cls):
    "Names that PyTorch, fastai or Python settle"
    theirs = [b for b in cls.__mro__ if not b.__module__.startswith(pkg)]
    return {name for b in theirs for name in vars(b)} | {'encodes','decodes'}

def members(cls):
    "(name, owner, function): the constructor and the public methods that the package gives a class"
    if '__init__' in vars(cls): yield '',cls,cls.__init__
    # a method that a class of ours settles for its subclasses is described there
    theirs = inherited(cls) | {name for b in cls.__mro__[1:] if b.__module__.startswith(pkg) for name in vars(b)}
    for name in vars(cls):
        f = getattr(cls, name)
        if name[0]=='_' or name in theirs or hasattr(event, name): continue
        if inspect.isroutine(f) and f.__module__.startswith(pkg): yield f'.{name}',f,f

def public():
    "(name, what has the docstring, callable) of every public function, class, and method of the package's classes"
    for mod in modules():
        if mod=='all': continue
        m = import_module(f'{pkg}.{mod}')
        for k in m.__all__:
            o = getattr(m, k)
            if inspect.isfunction(o) and o.__module__==m.__name__: yield f'{mod}.{k}',o,o
            if inspect.isclass(o):
                for name,owner,f in members(o): yield f'{mod}.{k}{name}',owner,f

def parameters(f):
    return [o for o in inspect.signature(f).parameters.values()
            if o.name not in ('self','cls') and o.kind not in (o.VAR_POSITIONAL,o.VAR_KEYWORD)]

def misfits():
    "Types that can't be resolved, and defaults that are not of the type they stand beside"
    res = []
    for name,_,f in public():
        try: hints = typing.get_type_hints(getattr(f, '__func__', f))
        except Exception as e:
            res.append(f'{name}: {e}')
            continue
        for o in parameters(f):
            if o.name not in hints or o.default is o.empty or repr(o.default)=='<factory>': continue
            fits = is_bearable(o.default, hints[o.name], conf=numbers)
            if not fits: res.append(f'{name}: {o.name}={o.default!r} is no {hints[o.name]}')
    return res

def undescribed():
    "What has no docstring, and parameters without a comment"
    res = []
    for name,owner,f in public():
        if not inspect.getdoc(owner): res.append(f'{name}: no docstring')
        d = docments(owner if is_dataclass(owner) and f.__name__=='__init__' else f, full=True)
        missing = [o.name for o in parameters(f) if not d.get(o.name, {}).get('docment')]
        if missing: res.append(f"{name}: no comment for {', '.join(missing)}")
    return res

if __name__=='__main__':
    found = misfits()+undescribed()
    print('\n'.join(found) or 'public signatures: all well')
    sys.exit(bool(found))

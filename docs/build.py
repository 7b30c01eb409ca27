"""The web site: `python docs/build.py OUT` makes it of README.md, the notebooks as they are (none is run) and the docments of the package.

Sphinx, MyST-NB and Furo, because Material for MkDocs announces its own end of life (2027) and Jupyter Book 2 builds with Node.js; Sphinx is kept, warns of every
link that leads nowhere, and its search knows the objects of the reference."""
import inspect, re, sys, tempfile
from importlib import import_module
from pathlib import Path
import nbformat
from fastai.callback.core import event
from fastcore.docments import docments
from sphinx.application import Sphinx

root = Path(__file__).parent.parent
pkg = 'ols_fastai'
skip = r'``+.*?``+|~~~.*?~~~|\[[^\]]*\]\([^)]*\)|^#[^\n]*$'  # of Markdown: where a name is no reference

# ---- the notebooks

def notebooks():
    "All of them, in reading order, without the one that is the front page"
    return [o for o in sorted((root/'nbs').rglob('*.ipynb')) if not any(p.startswith(('.','_')) for p in o.relative_to(root).parts) and o.stem!='index']

def exported_module(nb):
    "Full name of the module that a notebook is the source of, or None"
    m = first_match(r'^#\|\s*default_exp\s+(\S+)', nb)
    return m and f'{pkg}.{m}'

def short_name(mod): return mod.removeprefix(f'{pkg}.')

def first_match(pat, nb): return next((m[1] for c in nb.cells if c.cell_type=='code' and (m := re.search(pat, c.source, re.M))), None)

def page(nb, names):
    "A notebook without what nbdev hides and without its directives, names of the package linked to the reference"
    cells = []
    for c in nb.cells:
        if c.cell_type=='markdown': c.source = re.sub(r'\]\(((?:\.\./)*)index\.ipynb', r'](\1../index.md', link_names(c.source, names))
        elif re.search(r'^#\|\s*(hide|default_exp)\b', c.source, re.M): continue
        else: c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
        for out in c.get('outputs', []):  # what `show_doc` prints is written for Quarto
            if 'text/markdown' in out.get('data', {}): out.data['text/markdown'] = re.sub(r'\A---\n+(\[source\].*\n+)?#+ (.*)', r'**\2**', out.data['text/markdown'])
        if c.source: cells.append(c)
    nb.cells = cells
    nb.metadata['language_info'] = dict(name='python', pygments_lexer='ipython3')  # nbdev_clean takes it away; it makes the code coloured
    return nb

def link_names(text, names):
    def role(m): return f'{{py:obj}}`{m[1]}{m[2] or ""} <{names[m[1]]}>`' if m[1] in names else m[0]
    return re.sub(skip+r'|`([\w.]+)(\(\))?`(?!`)', role, text, flags=re.M|re.S)

# ---- the reference

def members(cls):
    "Public methods and properties that the package itself gives a class and that a user calls: not fastai's events. (name, directive, option, function)"
    for k,v in vars(cls).items():
        if k[0]=='_' or hasattr(event, k): continue
        o = v.fget if isinstance(v, property) else getattr(cls, k)
        f = getattr(o, '__func__', o)  # of a classmethod
        if not inspect.isfunction(f) or not f.__module__.startswith(pkg) or not f.__doc__: continue
        option = ':classmethod:' if inspect.ismethod(o) else ':staticmethod:' if isinstance(v, staticmethod) else ''
        yield k, 'property' if isinstance(v, property) else 'method', option, f

def short(o):
    "An annotation or a default as one would write it"
    if inspect.isclass(o) and not hasattr(o, '__args__') or inspect.isfunction(o): return o.__name__
    return re.sub(r'\b(?:[A-Za-z_]\w*\.)+(\w+)', r'\1', repr(o))  # pathlib.Path -> Path

def annotation(o): return '' if o is inspect.Parameter.empty else o if isinstance(o, str) else 'None' if o is None else short(o)

def signature(f, drop_first=False):
    "Parameters and what comes back, as the Python domain reads them"
    sig,ps = inspect.signature(f),[]
    for p in list(sig.parameters.values())[drop_first:]:
        s = {p.VAR_POSITIONAL:'*', p.VAR_KEYWORD:'**'}.get(p.kind, '')+p.name
        if a := annotation(p.annotation): s += f': {a}'
        if p.default is not p.empty: s += (' = ' if a else '=')+short(p.default)
        ps.append(s)
    r = annotation(sig.return_annotation)
    return f"({', '.join(ps)})" + (f' -> {r}' if r and not inspect.isclass(f) else '')

def fields(f, names):
    "A field list of the docments: what each parameter is, and what comes back"
    d = {k: link_names(re.sub(r'\s+', ' ', v['docment']), names) for k,v in docments(f, full=True).items() if v['docment']}
    return '\n'.join(f":returns: {v}" if k=='return' else f":param {k}: {v}" for k,v in d.items() if k not in ('self','cls'))

def directive(kind, head, *body, colons=3, options=()):
    fence = ':'*colons
    return '\n'.join([f'{fence}{{py:{kind}}} {head}', *options, '', '\n\n'.join(o for o in body if o), fence, ''])

def entry(name, o, names, mod):
    "One object of the reference"
    def doc(x): return link_names(inspect.getdoc(x) or '', names)
    names = {k:v for k,v in names.items() if k!=name}  # nothing links to itself
    if inspect.isclass(o):
        subs = [directive(kind, k if kind=='property' else k+signature(f, option!=':staticmethod:'), doc(f), fields(f, names), options=[option])
                for k,kind,option,f in members(o)]
        return directive('class', name+signature(o), doc(o), fields(o, names), *subs, colons=4)
    if callable(o): return directive('function', name+signature(o), doc(o), fields(o, names))
    return directive('data', name, f'`{type(o).__name__}`' + (f' of {len(o)}: ' + ', '.join(f'`{k}`' for k in o) if isinstance(o, (dict,list,tuple,set)) else ''))

def reference(mods):
    "Pages by module name, and the full name of everything in them by the name that a notebook uses"
    names = {}
    for mod in mods:
        m = import_module(mod)
        for o in m.__all__:
            names[o] = f'{mod}.{o}'
            if inspect.isclass(getattr(m, o)): names.update({f'{o}.{k}': f'{mod}.{o}.{k}' for k,*_ in members(getattr(m, o))})
    pages = {}
    for mod,nb in mods.items():
        m = import_module(mod)
        pages[mod] = '\n'.join([f'# {mod}', '', f'> {inspect.getdoc(m)}', '', f'Source, explained and tested: [{nb.stem}](../{nb.relative_to(root)})', '',
                                f'```{{py:module}} {mod}\n```', '', *(entry(o, getattr(m, o), names, mod) for o in m.__all__)])
    return pages,names

# ---- the site

def toctree(caption, docs): return f':::{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(docs) + '\n:::\n'

def linked_files(text): return re.findall(r'(?:\]\(|src=")(?!\w+:|#)([^)"#\s]+)', text)

def write_sources(src):
    "What Sphinx reads, laid out as the repository is, so that links between files hold"
    nbs = {o: nbformat.read(o, 4) for o in notebooks()}
    mods = {m: o for o,nb in nbs.items() if (m := exported_module(nb)) and m!=f'{pkg}.all'}
    pages,names = reference(mods)
    texts = {root/o: (root/o).read_text() for o in ('README.md','CONTRIBUTING.md','CHANGELOG.md')}
    texts.update({o: '\n'.join(c.source for c in nb.cells if c.cell_type=='markdown') for o,nb in nbs.items()})
    def write(fn, text):
        fn.parent.mkdir(parents=True, exist_ok=True)
        fn.write_bytes(text if isinstance(text, bytes) else text.encode())
    for fn,nb in nbs.items(): write(src/fn.relative_to(root), nbformat.writes(page(nb, names)))
    for mod,text in pages.items(): write(src/f'reference/{short_name(mod)}.md', text)
    # other files that these lead to: a page if Markdown, otherwise a copy
    linked = {(fn.parent/o).resolve() for fn,text in texts.items() for o in linked_files(text)}
    linked = {o for o in linked if o.is_file() and o.is_relative_to(root) and o.suffix!='.ipynb'} | {root/'CONTRIBUTING.md',root/'CHANGELOG.md'}
    for fn in linked: write(src/fn.relative_to(root), fn.read_bytes())
    more = sorted(str(o.relative_to(root).with_suffix('')) for o in linked if o.suffix=='.md' and o not in texts)
    docs = [str(o.relative_to(root).with_suffix('')) for o in nbs]
    write(src/'index.md', '\n\n'.join([link_names(texts[root/'README.md'], names),
        toctree('Tutorials', [o for o in docs if '/tutorials/' in o]), toctree('The package, part by part', [o for o in docs if '/tutorials/' not in o]),
        toctree('Reference', [f'{short_name(m)} <reference/{short_name(m)}>' for m in mods]), toctree('Project', ['CONTRIBUTING','CHANGELOG',*more])]))

def build(out):
    "Make the site in folder `out`. Raises `SphinxWarning` at the first link or text that is not right"
    with tempfile.TemporaryDirectory() as tmp:
        src = Path(tmp)/'src'
        src.mkdir()
        write_sources(src)
        app = Sphinx(src, root/'docs', out, Path(tmp)/'doctrees', 'html', status=None, warning=sys.stderr, warningiserror=True)
        app.build()
        if app.statuscode: sys.exit(app.statuscode)

if __name__=='__main__':
    if len(sys.argv)!=2: sys.exit('usage: python docs/build.py OUT')
    build(Path(sys.argv[1]).resolve())

"""The web site: `python docs/build.py OUT` makes it of README.md, the notebooks as they are (none is run) and the
docments of the package.

Sphinx, MyST-NB and Furo, because Material for MkDocs announces its own end of life (2027) and Jupyter Book 2 builds
with Node.js; Sphinx is kept, warns of every link that leads nowhere, and its search knows the objects of the
reference."""
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
    def is_page(o): return o.stem!='index' and not any(p.startswith(('.','_')) for p in o.relative_to(root).parts)
    return [o for o in sorted((root/'nbs').rglob('*.ipynb')) if is_page(o)]

def exported_module(nb):
    "Full name of the module that a notebook is the source of, or None"
    m = first_match(r'^#\|\s*default_exp\s+(\S+)', nb)
    return m and f'{pkg}.{m}'

def short_name(mod): return mod.removeprefix(f'{pkg}.')

def first_match(pat, nb):
    found = (re.search(pat, c.source, re.M) for c in nb.cells if c.cell_type=='code')
    return next((m[1] for m in found if m), None)

def is_hidden(cell): return cell.cell_type=='code' and re.search(r'^#\|\s*(hide|default_exp)\b', cell.source, re.M)

def prose(text, names):
    "Markdown whose names of the package are links; the front page is made of README"
    return re.sub(r'\]\(((?:\.\./)*)index\.ipynb', r'](\1../index.md', link_names(text, names))

def without_directives(code): return re.sub(r'^#\|.*\n?', '', code, flags=re.M).strip()

def adapt_output(out):
    "What `show_doc` prints is written for Quarto; a section of a report links to others, which are not on the page"
    data = out.get('data', {})
    if 'text/html' in data: data['text/html'] = re.sub(r' href="#[^"]*"', '', data['text/html'])
    if 'text/markdown' not in data: return
    data['text/markdown'] = re.sub(r'\A---\n+(\[source\].*\n+)?#+ (.*)', r'**\2**', data['text/markdown'])

def page(nb, names):
    "A notebook without what nbdev hides and without its directives, names of the package linked to the reference"
    nb.cells = [c for c in nb.cells if not is_hidden(c)]
    for c in nb.cells:
        c.source = prose(c.source, names) if c.cell_type=='markdown' else without_directives(c.source)
        for out in c.get('outputs', []): adapt_output(out)
    nb.cells = [c for c in nb.cells if c.source]
    # for colours; nbdev_clean takes it away
    nb.metadata['language_info'] = dict(name='python', pygments_lexer='ipython3')
    return nb

def link_names(text, names):
    def role(m):
        name,call = m[1],m[2] or ''
        return f'{{py:obj}}`{name}{call} <{names[name]}>`' if name in names else m[0]
    return re.sub(skip+r'|`([\w.]+)(\(\))?`(?!`)', role, text, flags=re.M|re.S)

# ---- the reference

def member(cls, k, v):
    "Directive, its option and the function behind a member of a class"
    if isinstance(v, property): return 'property','',v.fget
    o = getattr(cls, k)
    option = ':classmethod:' if inspect.ismethod(o) else ':staticmethod:' if isinstance(v, staticmethod) else ''
    return 'method',option,getattr(o, '__func__', o)

def members(cls):
    """Public methods and properties that the package itself gives a class and that a user calls: not fastai's events.

    (name, directive, option, function)"""
    for k,v in vars(cls).items():
        if k[0]=='_' or hasattr(event, k): continue
        kind,option,f = member(cls, k, v)
        if inspect.isfunction(f) and f.__module__.startswith(pkg) and f.__doc__: yield k,kind,option,f

def short(o):
    "An annotation or a default as one would write it"
    if inspect.isclass(o) and not hasattr(o, '__args__') or inspect.isfunction(o): return o.__name__
    return re.sub(r'\b(?:[A-Za-z_]\w*\.)+(\w+)', r'\1', repr(o))  # pathlib.Path -> Path

def annotation(o):
    if o is inspect.Parameter.empty: return ''
    if isinstance(o, str): return o
    return 'None' if o is None else short(o)

def parameter(p):
    s = {p.VAR_POSITIONAL:'*', p.VAR_KEYWORD:'**'}.get(p.kind, '')+p.name
    a = annotation(p.annotation)
    if a: s += f': {a}'
    if p.default is not p.empty: s += (' = ' if a else '=')+short(p.default)
    return s

def signature(f, drop_first=False):
    "Parameters and what comes back, as the Python domain reads them"
    sig = inspect.signature(f)
    ps = [parameter(p) for p in list(sig.parameters.values())[drop_first:]]
    r = annotation(sig.return_annotation)
    gives = f' -> {r}' if r and not inspect.isclass(f) else ''
    return f"({', '.join(ps)}){gives}"

def fields(f, names):
    "A field list of the docments: what each parameter is, and what comes back"
    lines = []
    for k,v in docments(f, full=True).items():
        if k in ('self','cls') or not v['docment']: continue
        text = link_names(re.sub(r'\s+', ' ', v['docment']), names)
        lines.append(f':returns: {text}' if k=='return' else f':param {k}: {text}')
    return '\n'.join(lines)

def directive(kind, head, *body, colons=3, options=()):
    fence = ':'*colons
    return '\n'.join([f'{fence}{{py:{kind}}} {head}', *options, '', '\n\n'.join(o for o in body if o), fence, ''])

def doc(x, names): return link_names(inspect.getdoc(x) or '', names)

def member_entry(k, kind, option, f, names):
    head = k if kind=='property' else k+signature(f, option!=':staticmethod:')
    return directive(kind, head, doc(f, names), fields(f, names), options=[option])

def data_entry(name, o):
    text = f'`{type(o).__name__}`'
    if isinstance(o, (dict,list,tuple,set)): text += f' of {len(o)}: ' + ', '.join(f'`{k}`' for k in o)
    return directive('data', name, text)

def entry(name, o, names):
    "One object of the reference"
    names = {k:v for k,v in names.items() if k!=name}  # nothing links to itself
    if inspect.isclass(o) and issubclass(o, Exception): return directive('exception', name, doc(o, names))
    if inspect.isclass(o):
        subs = [member_entry(*m, names) for m in members(o)]
        return directive('class', name+signature(o), doc(o, names), fields(o, names), *subs, colons=4)
    if callable(o): return directive('function', name+signature(o), doc(o, names), fields(o, names))
    return data_entry(name, o)

def full_names(mods):
    "The full name of everything in the modules by the name that a notebook uses"
    names = {}
    for mod in mods:
        m = import_module(mod)
        for name in m.__all__:
            o = getattr(m, name)
            names[name] = f'{mod}.{name}'
            if inspect.isclass(o): names.update({f'{name}.{k}': f'{mod}.{name}.{k}' for k,*_ in members(o)})
    return names

def module_page(mod, nb, names):
    m = import_module(mod)
    source = f'Source, explained and tested: [{nb.stem}](../{nb.relative_to(root)})'
    head = [f'# {mod}', f'> {inspect.getdoc(m)}', source, f'```{{py:module}} {mod}\n```']
    return '\n\n'.join([*head, *(entry(o, getattr(m, o), names) for o in m.__all__)])

# ---- the site

def toctree(caption, docs): return f':::{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(docs) + '\n:::\n'

def contents(docs, mods, more):
    """How-tos and studies in the order of the tables that end the front page, results first, the package part by part
    in that of its folders, its reference"""
    front = (root/'README.md').read_text(encoding='utf8')
    tutorials,studies = (sorted([o for o in docs if f'/{part}/' in o], key=lambda o: front.rfind(f'({o}.ipynb)'))
                         for part in ('tutorials','studies'))
    studies.sort(key=lambda o: not o.endswith('/results'))
    parts = [o for o in docs if o not in tutorials+studies]
    modules = [f'{short_name(m)} <reference/{short_name(m)}>' for m in mods]
    trees = {'How-tos':tutorials, 'Studies':studies, 'The package, part by part':parts, 'Reference':modules,
             'Project':['CONTRIBUTING','CHANGELOG',*more]}
    return [toctree(*o) for o in trees.items()]

def linked_files(text): return re.findall(r'(?:\]\(|src=")(?!\w+:|#)([^)"#\s]+)', text)

def other_files(texts):
    "Files of the repository that pages lead to and that are no notebooks"
    linked = {(fn.parent/o).resolve() for fn,text in texts.items() for o in linked_files(text)}
    linked = {o for o in linked if o.is_file() and o.is_relative_to(root) and o.suffix!='.ipynb'}
    return linked | {root/'CONTRIBUTING.md',root/'CHANGELOG.md'}

def markdown_of(nb): return '\n'.join(c.source for c in nb.cells if c.cell_type=='markdown')

def without_suffix(fn): return str(fn.relative_to(root).with_suffix(''))

def write(fn, text):
    fn.parent.mkdir(parents=True, exist_ok=True)
    fn.write_bytes(text if isinstance(text, bytes) else text.encode())

def write_sources(src):
    "What Sphinx reads, laid out as the repository is, so that links between files hold"
    nbs = {o: nbformat.read(o, 4) for o in notebooks()}
    mods = {exported_module(nb): o for o,nb in nbs.items()}
    mods = {m: o for m,o in mods.items() if m not in (None,f'{pkg}.all')}
    names = full_names(mods)
    texts = {root/o: (root/o).read_text() for o in ('README.md','CONTRIBUTING.md','CHANGELOG.md')}
    texts.update({o: markdown_of(nb) for o,nb in nbs.items()})
    linked = other_files(texts)
    for fn,nb in nbs.items(): write(src/fn.relative_to(root), nbformat.writes(page(nb, names)))
    for mod,nb in mods.items(): write(src/f'reference/{short_name(mod)}.md', module_page(mod, nb, names))
    for fn in linked: write(src/fn.relative_to(root), fn.read_bytes())
    more = sorted(without_suffix(o) for o in linked if o.suffix=='.md' and o not in texts)
    trees = contents([without_suffix(o) for o in nbs], mods, more)
    write(src/'index.md', '\n\n'.join([link_names(texts[root/'README.md'], names), *trees]))

def build(out):
    "Make the site in folder `out`. Raises `SphinxWarning` at the first link or text that is not right"
    with tempfile.TemporaryDirectory() as tmp:
        src = Path(tmp)/'src'
        src.mkdir()
        write_sources(src)
        strict = dict(status=None, warning=sys.stderr, warningiserror=True)
        app = Sphinx(src, root/'docs', out, Path(tmp)/'doctrees', 'html', **strict)
        app.build()
        if app.statuscode: sys.exit(app.statuscode)

if __name__=='__main__':
    if len(sys.argv)!=2: sys.exit('usage: python docs/build.py OUT')
    build(Path(sys.argv[1]).resolve())

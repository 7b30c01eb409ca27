"""Sphinx's settings; `build.py` writes the sources and starts it.

Mathematics becomes MathML here, so that no page asks the network for anything."""
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project,author,copyright = 'ols_fastai','The ols_fastai authors','2026, The ols_fastai authors'
html_title,html_theme,html_favicon = project,'furo','static/icon.svg'
html_static_path,html_css_files = ['static'],['site.css']
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath','colon_fence','fieldlist','html_image']
myst_heading_anchors = 3
suppress_warnings = ['myst.header']  # a notebook may go from # to ###
html_math_renderer = 'mathml'
html_show_sourcelink,html_copy_source = False,False
html_domain_indices = False  # the reference in the sidebar lists the modules
add_module_names = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
pygments_style,pygments_dark_style = 'friendly','monokai'

def mathml(self, node):
    self.body.append(str(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))))
    raise nodes.SkipNode

def setup(app): app.add_html_math_renderer('mathml', (mathml, None), (mathml, None))

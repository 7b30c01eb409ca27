"README.md from nbs/index.ipynb: as markdown, without hidden cells, with links that hold from the top folder."
import re
import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import RegexRemovePreprocessor
from traitlets.config import Config
from project import root

def readme():
    c = Config()
    c.RegexRemovePreprocessor.patterns = [r'#\|\s*hide\n']
    c.MarkdownExporter.preprocessors = [RegexRemovePreprocessor]
    nb = nbformat.read(root/'nbs/index.ipynb', 4)
    nb.metadata['language_info'] = dict(name='python')  # nbdev_clean takes it away; it makes the code blocks coloured
    text,_ = MarkdownExporter(config=c).from_notebook_node(nb)
    text = re.sub(r'<style.*?</style>\n*', '', text, flags=re.S)
    text = re.sub(r'\]\((?!https?:|#)(?:\.\./)', '](', re.sub(r'\]\((?!https?:|#|\.\./)', '](nbs/', text))
    text = text.replace("'../benchmarks/", "'benchmarks/")  # as it is run from the top folder
    return re.sub(r'\n{3,}', '\n\n', re.sub(r' +$', '', text, flags=re.M)).strip()+'\n'

if __name__=='__main__': print(readme(), end='')

"What the tools and the tests of the project share: its folders, settings and modules, and how they start a program."
import os, subprocess
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
package = root/'ols_fastai'

def settings():
    "settings.ini, as setup.py reads it"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf8')
    return cfg['DEFAULT']

def sources():
    "Files of the package, relative to the top folder: generated ones too"
    return sorted(str(o.relative_to(root)) for o in package.rglob('*.py'))

def modules():
    "Dotted names of the package's own modules, relative to it (`callback`, `train.ols`), `all` last"
    names = ['.'.join(o.relative_to(package).with_suffix('').parts) for o in package.rglob('[!_]*.py')]
    return sorted(names, key=lambda o: (o=='all', o))

def module_file(name):
    "File of a module that is named relative to the package, with dots or slashes: `train.ols`, `train/ols`"
    return package/f"{name.replace('.', '/')}.py"

def notebooks():
    "All of them but Jupyter's own copies"
    return sorted(o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

def run(*args, cwd=root, **env):
    "Output of a program, which must end well; `env` is put on top of the environment"
    args = [str(o) for o in args]
    r = subprocess.run(args, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert r.returncode==0, f"{' '.join(args)}\n{r.stdout}\n{r.stderr}"
    return r.stdout

"Builds the package from settings.ini, the one place for its version, requirements and commands."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf8')
cfg = cfg['DEFAULT']
extras = {o: cfg[f'{o}_requirements'].split() for o in ('demo', 'dicom', 'dev', 'docs')}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0',
    long_description=(Path(__file__).parent/'README.md').read_text(encoding='utf8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['ols_fastai*']), python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points=dict(
        console_scripts=cfg['console_scripts'].split(),
        nbdev=[f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]),
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Medical Science Apps.'],
)

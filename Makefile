# Thin wrappers; README.md has the plain commands behind demo and test.
#
#   make demo                    describe the clips of examples/audio with examples/sam-tiny
#   make test                    run the tests
#   make test-quick              run the tests that are not slow
#   make test-timing             run the tests that assert wall-clock times, on an idle machine
#   make demo TORCH=torch==2.13.0  install another torch than the newest: any requirement that pip understands

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
FLOOR_VENV ?= .venv-floor
FLOOR_TRANSFORMERS ?= transformers==5.13.*
# The suites that depend on transformers' inside: names, cache, generation, Trainer.
FLOOR_TESTS ?= tests/model tests/data/test_batches.py tests/training tests/test_conversion.py
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install
PACKAGING := setup.cfg setup.py pyproject.toml

.PHONY: demo test test-quick test-timing test-floor quality style gpu-test clean

demo: $(VENV)/.package
	$(PY) -m sam_alm describe

# One thread a worker: the workers already fill the cores.
test: $(VENV)/.package $(VENV)/.development
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not timing" $(PYTEST_ARGS)

test-quick: $(VENV)/.package $(VENV)/.development
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not timing" $(PYTEST_ARGS)

test-timing: $(VENV)/.package $(VENV)/.development
	$(PY) -m pytest -m timing

quality: $(VENV)/.development
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

style: $(VENV)/.development
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The oldest supported transformers, in an environment of its own.
test-floor:
	$(MAKE) $(FLOOR_VENV)/.development VENV=$(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip install "$(FLOOR_TRANSFORMERS)"
	OMP_NUM_THREADS=1 $(FLOOR_VENV)/bin/python -m pytest -m "not timing" $(PYTEST_ARGS) $(FLOOR_TESTS)

# Runs in the environment of PYTHON, which needs a CUDA torch and may have the kernels of `.[cuda]`.
gpu-test:
	$(PYTHON) -m pytest tests/gpu -v

clean:
	rm -rf $(VENV) $(FLOOR_VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

# Stamps: what is in the environment. torch comes first, so that what follows accepts the one that was asked for.
$(VENV)/.dependencies: setup.cfg
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) .
	touch $@

$(VENV)/.development: $(VENV)/.dependencies
	$(PIP_INSTALL) ".[dev,eval]"
	touch $@

# The installed copy follows the checkout, for the `sam-alm` command; the tests and the demo import the checkout's files.
$(VENV)/.package: $(VENV)/.dependencies $(PACKAGING) $(wildcard *.py) $(shell find sam_lab -type f -not -name "*.pyc")
	rm -rf build
	$(PIP_INSTALL) --no-deps --force-reinstall .
	touch $@

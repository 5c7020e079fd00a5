# Needs Python 3.11 or newer and nothing else: every target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Real data and checkpoints for the tests; those that need them skip where there are none.
PROMPTEOL_DATA ?= $(realpath ../shared/data)
export PROMPTEOL_DATA
# Each process of the tests would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(BIN)/python -m pytest -q
# Three on two cores: many tests wait for processes that they start.
PARALLEL := -n 3 --dist worksteal

.PHONY: setup demo unit test wide slow huge plan-test lint docs examples clean

setup: $(BIN)/.ready

# torch comes first and alone: asked for together with the rest, a larger build might be chosen.
$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: setup
	$(BIN)/python -m train.contrastive --mesh 4x2

# Tests that need no device: jax has none. Other modules may start one when they are imported.
UNITS = $(shell grep -rl "pytestmark = pytest.mark.unit" tests)

unit: setup
	PROMPTEOL_DEVICES=0 $(PYTEST) -m "not slow and not wide" $(PARALLEL) $(UNITS)

# A few cases of each law.
test: setup
	$(PYTEST) -m "not slow and not wide" $(PARALLEL) $(TESTS)

# More cases of the same laws: other families, equations, losses.
wide: setup
	$(PYTEST) -m "wide and not slow" $(PARALLEL) $(TESTS)

# Tests of seconds to minutes each.
slow: setup
	$(PYTEST) -m "slow and not huge" $(PARALLEL) $(TESTS)

# The rest; needs idle cores and 10 GB of memory.
huge: setup
	$(PYTEST) -m huge $(TESTS)

# Plans for TPUs, and files for those who start jobs there: libtpu's compiler needs no TPU, but an
# environment of its own, which SkyPilot with all it brings shares.
TPU_VENV ?= .venv-tpu

plan-test: $(TPU_VENV)/.ready
	$(TPU_VENV)/bin/python -m pytest -q tests/tpu/test_bounds.py tests/tpu/test_deploy.py

$(TPU_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(TPU_VENV)/bin/python -m pip install --quiet --editable ".[tpu,plan-test]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# The scripts and the notebook of examples/, all of them.
examples: setup
	$(PYTEST) tests/laws/test_examples.py

# The documentation as a site in build/site; every warning is an error.
docs: $(BIN)/.docs-ready
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(BIN)/.docs-ready: $(BIN)/.ready
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(TPU_VENV) runs build *.egg-info

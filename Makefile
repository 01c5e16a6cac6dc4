# make pipeline: everything from data to a registered model.  make test: the test suite.  make check: ruff and mypy.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Stages and tests call `python`: it has to be the environment's.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

.PHONY: pipeline test check ui clean

pipeline: $(VENV)/.installed
	$(IN_VENV) dvc repro
	@$(BIN)/posefoundry versions

# A file of tests on each core, so that tests that wait for processes do not hold up the others. These see no GPU; where
# there is one, the tests that need it follow, one at a time.
test: $(VENV)/.installed
	$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile
	@if command -v nvidia-smi > /dev/null; then $(IN_VENV) python -m pytest -m gpu; fi

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

ui: $(VENV)/.installed
	$(BIN)/posefoundry ui

# The stamp is touched last, so an install that was cut short is done again.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "posefoundry needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; say make PYTHON=python3.12")'
	@echo "Installing into $(VENV), once; this takes some minutes."
	@$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) data/raw data/yolo models/checkpoints models/train models/export reports

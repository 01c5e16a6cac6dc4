# make pipeline: everything from data to a registered model.  make test: the test suite.  make check: ruff and mypy.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

.PHONY: pipeline test check ui clean

pipeline: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@$(BIN)/posefoundry versions

test: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

ui: $(VENV)/.installed
	$(BIN)/posefoundry ui

# The stamp is touched last, so an install that was cut short is done again.
$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) data/raw data/yolo models/train models/export reports

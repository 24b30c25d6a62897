# make demo   the whole main job on generated studies, in an environment of its own
# make test   every check: ruff, mypy, pytest with coverage

PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= demo_output
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TYPECHECK := build/typecheck

.PHONY: demo test lint types unit install install-dev clean

demo: install
	$(BIN)/mcmiad demo --out $(DEMO_OUT)

test: install-dev lint types unit

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev,mlflow]'
	touch $@ $(VENV)/.installed

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the folder mapping of an editable install: it checks an installed copy.
# build/ goes first, since setuptools would copy modules that no longer exist from it.
types:
	rm -rf build
	$(PIP) install --quiet --no-deps --target $(TYPECHECK) .
	cd $(TYPECHECK) && $(abspath $(BIN))/mypy --config-file $(abspath setup.cfg) -p mcmiad_monai

unit:
	$(BIN)/pytest -n $(WORKERS) --cov --cov-report=term --cov-fail-under=90

clean:
	rm -rf build $(VENV) $(DEMO_OUT)

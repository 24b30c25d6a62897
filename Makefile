# make demo     the whole main job on generated studies, in an environment of its own
# make bundles  the four bundles from their one source, bundles/source
# make docs     the documentation as a site, into build/docs
# make test     every check: ruff, mypy, pytest with coverage, and MONAI Label in a second environment
# make test-all the same, and what a release needs besides: the documentation, the demo, and the
#               tests that take minutes, of Ray and Slurm
#
# MONAI Label pins pydicom below 3 and so numpy below 2, which the package itself does not need: its
# tests run in an environment of their own, and all others with the newest versions.

PYTHON ?= python3
VENV ?= .venv
LABEL_VENV ?= .venv-label
DEMO_OUT ?= demo_output
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LABEL_BIN := $(LABEL_VENV)/bin
TYPECHECK := build/typecheck

.PHONY: demo bundles docs test test-all lint types unit long label install install-dev install-docs install-label clean

demo: install
	$(BIN)/mcmiad demo --out $(DEMO_OUT)

bundles: install
	$(BIN)/python bundles/source/render.py

docs: install-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

test: install-dev lint types unit label

test-all: test long docs demo

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev
install-docs: $(VENV)/.installed-docs
install-label: $(LABEL_VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[weights]'
	touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev,docs,mlflow,export,cohort,dicom]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[docs,weights]'
	touch $@ $(VENV)/.installed

$(LABEL_VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_BIN)/python -m pip --disable-pip-version-check install --editable '.[label,test]'
	touch $@

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
	$(BIN)/pytest -n $(WORKERS) -m "not long" --dist worksteal --cov --cov-report=term --cov-fail-under=90

# Ray and Slurm start processes of their own: one test at a time. .ci/install-slurm installs Slurm.
long: install-dev
	$(BIN)/pytest -m long

# Loopback servers of MONAI Label and, where it is installed (.ci/install-orthanc), of Orthanc.
label: install-label
	$(LABEL_BIN)/pytest -n $(WORKERS) --dist loadfile --cov --cov-config=tests/monailabel/coverage.ini \
		--cov-report=term --cov-fail-under=90 tests/monailabel \
		tests/test_notebooks.py::test_server_answers_and_stops

clean:
	rm -rf build $(VENV) $(LABEL_VENV) $(DEMO_OUT)

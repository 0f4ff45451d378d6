# `make help` lists what there is. Every task makes its own virtual environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PY313  ?= $(firstword $(shell for p in python3.13 $$HOME/.pyenv/versions/3.13.*/bin/python; do $$p -c "" 2>/dev/null && echo $$p; done))
DEMO   ?= demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-py313 test-lowest lint format docs bench bench-install bench-patches \
    bench-loader bench-chunks bench-predict clean

help:  ## list the tasks
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aneurysm needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,train]'
	touch $@

install: $(VENV)/.installed  ## make the virtual environment

# Folds are dealt by keyed hashes of patients: with a key that is known the demo is the same wherever it runs.
demo: export ANEURYSM_PATIENT_KEY = demo
demo: install  ## make a small data set, precache it, train on it for minutes, and report
	@# The least difficulty: of what a CPU sees in minutes, large aneurysms can be learnt.
	$(BIN)/aneurysm phantom $(DEMO)/data --series 140 --difficulty 0.25 --overwrite
	@# 8: some of the phantom's series are made to be rejected.
	$(BIN)/aneurysm precache --data $(DEMO)/data --cache $(DEMO)/cache || test $$? -eq 8
	$(BIN)/aneurysm verify --cache $(DEMO)/cache --deep
	$(BIN)/aneurysm info --cache $(DEMO)/cache
	$(BIN)/aneurysm info --cache $(DEMO)/cache --png $(DEMO)/volume.png \
	    "$$(grep -m1 ',placed,' $(DEMO)/cache/lesions.csv | cut -d, -f1)"
	rm -rf $(DEMO)/run
	$(BIN)/aneurysm train --cache $(DEMO)/cache --config examples/small.toml --out $(DEMO)/run
	$(BIN)/aneurysm evaluate $(DEMO)/run --cache $(DEMO)/cache --truth $(DEMO)/data/truth.csv

test: install lint  ## lint, types and the fast tests
	$(BIN)/python -m pytest -n auto -m 'not slow'

test-slow: install  ## the tests that take minutes
	@# A file at a time for each: some files have one costly fixture for all their tests.
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

test-py313:  ## the fast tests that need no torch, on Python 3.13 where there is one
	@# Without the extra `train`: torch is several gigabytes, and building and reading caches does without it.
ifeq ($(PY313),)
	@echo "skipped: there is no Python 3.13 on this machine"
else
	test -d $(VENV)-py313 || $(PY313) -m venv $(VENV)-py313
	$(VENV)-py313/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(VENV)-py313/bin/python -m pytest -n auto -m 'not slow'
endif

test-lowest: LOWEST := $(VENV)-lowest
test-lowest:  ## the same tests with the lowest versions of dependencies that pyproject.toml admits
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra objects --extra cluster pyproject.toml \
	    --output-file $(LOWEST)/lowest.txt
	@# What the tests are run by is the newest. ome-zarr-models needs a newer zarr: its tests are skipped.
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --requirement $(LOWEST)/lowest.txt --editable . \
	    dcm2niix hypothesis 'moto[server]' prometheus-client psutil pytest pytest-timeout pytest-xdist tensorstore
	$(LOWEST)/bin/python -m pytest -n auto -m 'not slow'

lint: install  ## ruff, mypy, and that packages import only what lies below them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: install  ## let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## the pages and the API reference as site/, every link checked
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,train,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/check_site.py site

bench: bench-install  ## precaching and reading patches, beside other tools (installs them)
	-$(BIN)/python -m benchmarks.precache
	$(BIN)/python -m benchmarks.patches

bench-patches: bench-install  ## of these, reading patches alone
	$(BIN)/python -m benchmarks.patches

bench-loader: bench-install  ## whole loaders beside MONAI's and TorchIO's
	$(BIN)/python -m benchmarks.loader

bench-chunks: bench-install  ## what chunks, codecs and shuffles cost and save (half an hour)
	$(BIN)/python -m benchmarks.chunks

bench-predict: install  ## predicting one series on this CPU, and where the time goes
	$(BIN)/python -m benchmarks.predict

bench-install: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,train,bench]'
	@# Without what it depends on: that brings torchvision, whose build may not be torch's, and which the reader of
	@# patches does not need.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'nnunetv2>=2.8,<3'

clean:  ## remove the virtual environment, the demo's output and the built pages
	rm -rf $(VENV) $(DEMO) site

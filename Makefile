# Needs Python 3.11, pip and make. Every target makes what it needs; a second run is instant.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# pytest processes. A MAX compile takes one core and one process compiles one program at a time.
WORKERS ?= 2
# loadfile keeps a file's cases together, so that they compile as one module; tests/conftest.py
# orders the files.
PYTEST_ARGS ?= -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# make demo IMAGES="a.jpg b.jpg" DEMO_ARGS="--weights vit.safetensors"
IMAGES ?=
DEMO_ARGS ?=
# make bench BENCH_ARGS="--models vit-s --batches 1 8"
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-thorough check style format types install wheel clean
.DELETE_ON_ERROR:

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 23

demo: $(STAMP)-demo ## photographs through two Vision Transformers: eager, Inductor and MAX
	$(BIN)/python -m pretrained_models.demo $(DEMO_ARGS) $(IMAGES)

bench: $(STAMP)-bench ## ViTs on MAX, eager, Inductor, ONNX Runtime, OpenVINO: table, files, plots
	$(BIN)/python -m benchmarks.vit_inference $(BENCH_ARGS)

test: $(STAMP)-test ## the test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-thorough: $(STAMP)-test ## the test suite and the cases that others cover nearly
	$(BIN)/python -m pytest $(PYTEST_ARGS) --thorough

check: style types test ## style, types and tests

style: $(STAMP)-dev ## ruff check and ruff format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)-dev ## mypy
	$(BIN)/mypy

install: $(STAMP)-dev ## everything a developer needs, pre-commit hooks included
	$(BIN)/pre-commit install

wheel: $(STAMP)-test ## dist/*.whl with the kernels precompiled
	$(BIN)/python -c "from torch_max_backend.kernel_library import ship; ship()"
	$(PIP) wheel --no-deps --wheel-dir dist .

clean: ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) build dist torch_max_backend/precompiled .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python without ensurepip (some Linux distributions) makes its venv with the pip outside it.
$(STAMP)-venv:
	@echo "== $(VENV): virtual environment for $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	@touch $@

# On its own and exact: a range, or a second package in the same command, may draw in another build.
$(STAMP)-torch: $(STAMP)-venv constraints.txt
	@echo "== $(VENV): torch"
	$(PIP) install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@touch $@

# One stamp per extra of pyproject.toml: demo, bench, test, dev.
$(STAMP)-%: $(STAMP)-torch pyproject.toml constraints.txt
	@echo "== $(VENV): torch_max_backend[$*]"
	$(PIP) install -c constraints.txt -e ".[$*]"
	@touch $@

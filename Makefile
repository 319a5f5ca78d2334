# Everything runs in .venv, which is made once and again when pyproject.toml or constraints.txt change.
#
#   make install into .venv, about 6.3 GB on Linux; the others do it first where it is not done
#   make demo    train a small autoencoder on procedural tiles and show what it rebuilds
#   make test    the whole test suite
#   make test-cpu-torch   the tests of reading on paper, with a torch built without CUDA
#   make check   formatting, lint, types, import directions
#   make clean   remove .venv and caches; run folders under runs/ stay

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := src tests examples benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-cpu-torch check clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@scripts/check_python.sh "$(PYTHON)"
	@echo "Installing into $(VENV): about 6.3 GB on Linux, mostly CUDA libraries that come with torch; minutes, once."
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,geotiff,adamw8bit]'
	@touch $@

demo: $(STAMP)
	@scripts/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest

test-cpu-torch:
	@PYTHON="$(PYTHON)" scripts/test_cpu_torch.sh

check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-cpu build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find src tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# `make demo` and `make test` do the whole set-up on a fresh machine; run again, they do nothing twice.
#
# PYTHON    the interpreter to build the environment with (3.11 or newer)
# PIP_ARGS  further arguments for pip, for example the index of PyTorch's CPU builds

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
CPU := constraints/cpu.txt

.PHONY: help demo test lint format types imports ci clean

help:
	@echo "make demo    from nothing to segmentations of scans the network never saw, with a Dice table and pictures"
	@echo "make test    the test suite"
	@echo "make lint    style, types and the import contract"
	@echo "make ci      everything that must hold before a change lands"
	@echo "make clean   remove the environment and what the demo made"

demo: .venv/demo.done
	@echo "==> running the demo: results go to ./demo"
	$(BIN)/medseg-se demo --output demo

test: .venv/test.done
	@echo "==> running the tests"
	$(BIN)/python -m pytest -q -n auto --maxprocesses=8 -m "not slow and not gpu and not engines"
	@echo "==> running the tests of inference engines, which do not share a process with training"
	$(BIN)/python -m pytest -q -n auto --maxprocesses=8 -m "engines and not slow and not gpu"

lint: .venv/dev.done
	@echo "==> style"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "==> types"
	$(BIN)/mypy
	@echo "==> import contract"
	$(BIN)/lint-imports

format: .venv/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci: test lint

clean:
	rm -rf .venv demo build *.egg-info

# The environment. Each mark is made again when what it depends on changed.

.venv/torch.done: $(CPU)
	@echo "==> making .venv with $(PYTHON) and installing PyTorch as constraints/cpu.txt pins it (once)"
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP) -r $(CPU)
	@touch $@

.venv/demo.done: .venv/torch.done setup.cfg pyproject.toml
	@echo "==> installing medseg_se with what the demo needs (once)"
	$(PIP) -c $(CPU) -e '.[report]'
	@touch $@

.venv/test.done: .venv/torch.done setup.cfg pyproject.toml
	@echo "==> installing medseg_se with what the tests need (once)"
	$(PIP) -c $(CPU) -e '.[report,test]'
	@touch $@

.venv/dev.done: .venv/torch.done setup.cfg pyproject.toml
	@echo "==> installing the tools for style, types and imports (once)"
	$(PIP) -c $(CPU) -e '.[dev]'
	@touch $@

# Every target makes the virtual environment that it needs; nothing but Python 3.10 or later is expected.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN = $(VENV)/bin

.PHONY: help train test lint bench docs clean

help:
	@echo "make train   meta-learn on the embedded default experiment (about a minute after installation)"
	@echo "make test    run the tests"
	@echo "make lint    check style, formatting and types"
	@echo "make bench   measure time and memory of the meta-gradients, other packages beside them"
	@echo "make docs    build the documentation into docs/_build/html"

# The stamp $(VENV)/with-X says that the package is installed, editable, with the extra X ("core" is none).
$(VENV)/with-%: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".$(if $(filter core,$*),,[$*])"
	touch $@

train: $(VENV)/with-core
	$(BIN)/adjoint-meta train

test: $(VENV)/with-test
	$(BIN)/python -m pytest --numprocesses $(JOBS)

# Types are checked on a plain install, where the four folders are one package.
lint: $(VENV)/with-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build $(VENV)/plain
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/plain .
	cd $(VENV) && MYPYPATH=plain bin/python -m mypy --config-file "$(CURDIR)/setup.cfg" -p adjoint_meta

bench: $(VENV)/with-bench
	$(BIN)/adjoint-meta bench meta-gradient
	$(BIN)/adjoint-meta bench limit

docs: $(VENV)/with-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build docs/_build *.egg-info

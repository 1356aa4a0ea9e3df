# make run    the main job: prove, teach and prove again, on a small model (ARGS="train.epochs=2")
# make test   ruff, mypy and every test (ARGS="-k merge")
# make docs   the documentation as a site in build/site; no network needed
# Needs make and Python 3.11 or newer; both set themselves up in .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling all 20,000 modules is half of an install; what is imported is compiled then, and kept,
# even where a container image says otherwise.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE
TORCH := $(shell grep '^torch==' constraints.txt)

.DELETE_ON_ERROR:
.PHONY: help run test tests lint docs clean

help:
	@sed -n '1,4s/^# //p' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.ready-run
	$(BIN)/smollora run $(ARGS)

# Side by side: mypy fills the time in which the tests are collected. Both end, whichever fails.
test: $(VENV)/.ready-dev
	@$(MAKE) --no-print-directory -j2 lint tests

tests: $(VENV)/.ready-tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# What is imported is compiled once here, not four times by processes that begin together.
$(VENV)/.ready-tests: $(VENV)/.ready-dev
	-$(BIN)/pytest --collect-only -q > /dev/null
	touch $@

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that nothing else chooses another build of it. A Python brings the
# pip of its day: today's needs two thirds of the processor time.
$(VENV)/.ready-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "smollora needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	-$(PIP) --upgrade pip
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.ready-run: $(VENV)/.ready-torch pyproject.toml
	$(PIP) -e .
	touch $@

# All at once: whoever begins with the tests has what the main job needs as well.
$(VENV)/.ready-dev: $(VENV)/.ready-torch pyproject.toml
	$(PIP) -e '.[dev]'
	touch $(VENV)/.ready-run $@

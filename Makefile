# Everything here sets itself up in .venv: Python 3.11+, a C++ compiler and make are all that must be there before.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo setup test test-slow lint format clean

demo: .venv/.run-installed
	@for prompt in \
		"The old man looked at the sea and" \
		"An economy is" \
		"def add(a, b):"; \
	do \
		printf '\n>>> %s' "$$prompt"; \
		$(BIN)/mobilemoe run nano "$$prompt" --max-new-tokens 64 \
			--temperature 0.7 --top-p 0.9 --repetition-penalty 1.1 --seed 1 || exit 1; \
	done

setup: .venv/.dev-installed

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mobilemoe needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv 2>/dev/null \
		|| { rm -rf .venv; $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python .venv install --quiet pip; } \
		|| { rm -rf .venv; echo "$(PYTHON) has neither ensurepip nor pip: install its venv module"; exit 1; }

.venv/.run-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[torch]'
	@touch $@

.venv/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	@touch $@ .venv/.run-installed

# `make demo` shows agentd at work, `make test` runs its tests; each sets up what it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything comes from hashed lock files; agentd itself is installed without resolving anything.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
THIS := $(INSTALL) --no-deps --no-build-isolation --editable .

.PHONY: demo test lint coverage format clean

demo: $(VENV)/.run
	$(BIN)/agentd demo

test: $(VENV)/.dev tests/clients/node_modules
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Each pure module is covered to the last branch by its own twin alone.
coverage: $(VENV)/.dev
	$(BIN)/python tests/twins.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: packaging/lock/run.txt pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --require-hashes --requirement packaging/lock/run.txt
	$(THIS)
	touch $@

$(VENV)/.dev: packaging/lock/dev.txt $(VENV)/.run
	$(INSTALL) --require-hashes --requirement packaging/lock/dev.txt
	touch $@

# Without npm the tests that need it say so and are skipped; in CI that is a failure.
tests/clients/node_modules: tests/clients/package-lock.json
	if command -v npm >/dev/null; then npm ci --prefix tests/clients --no-audit --no-fund --silent; fi

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# What people and CI call. `make` alone lists the targets; ARGS adds arguments, PYTHON names the interpreter.
.DEFAULT_GOAL := help
.PHONY: setup demo test lint docs bench lock clean help

PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
FREEZE := $(PIP) freeze --all --exclude pip --exclude palate
STAMP := .venv/.stamp
DOCS := $(wildcard README.md docs/*.md)

setup: $(STAMP) ## Make .venv with the pinned packages and this one, editable

$(STAMP): requirements.txt pyproject.toml src/palate/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Palate needs Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
		echo "No .venv without the venv module; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing the pinned packages into .venv (some minutes the first time)"
	$(PIP) install -q -r requirements.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## Learn from the bundled people, ask you ten questions, show what was learned
	@$(BIN)/palate demo $(ARGS)

test: $(STAMP) ## Run the tests and the examples in docstrings
	@PYTHON=$(PY) scripts/wordnet.sh
	@scripts/services.sh
	$(PY) -m pytest $(ARGS)

lint: $(STAMP) ## Check style, types, import arrows, and that generated docs are fresh
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(if $(DOCS),$(PY) -m cogapp -P --check --check-fail-msg="Run: make docs" $(DOCS))

docs: $(STAMP) ## Write the generated parts of README and docs anew
	$(if $(DOCS),$(PY) -m cogapp -P -r $(DOCS))

bench: $(STAMP) ## Measure on Facets, the bundled data
	@$(BIN)/palate bench facets $(ARGS)

lock: $(STAMP) ## Pin in requirements.txt what .venv holds
	@{ sed -n '/^#/p' requirements.txt; $(FREEZE) | sed -n 's/^\(torch==[^+]*\).*/\1/p'; \
		$(FREEZE) | sed '/^torch==/d'; } > requirements.new
	@mv requirements.new requirements.txt

clean: ## Remove caches and build outputs; .venv stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

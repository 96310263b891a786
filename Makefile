# Five words do everything: demo, test, check, golden, clean. Each sets up .venv first when it has to.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test check golden clean

demo: $(STAMP)  ## set up, then run the whole system on this machine on real data
	$(VENV)/bin/alignfed demo

test: $(STAMP)  ## set up, then run every test
	$(VENV)/bin/python -m pytest

check: $(STAMP)  ## format, lint, types, import rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

golden: $(STAMP)  ## rewrite the golden transcripts and generated docs; review the diff before committing
	$(VENV)/bin/python -m pytest tests/golden tests/docs --rewrite

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alignfed needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

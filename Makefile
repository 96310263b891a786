# A few words do everything; `make help` lists them. Each but clean sets up .venv first when it has to.
# A fresh machine needs Python 3.11 or newer with pip and venv, and make. Another Python: make demo PYTHON=/path/to/python
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c "" 2>/dev/null && echo $$python && break; done)
VENV := .venv
STAMP := $(VENV)/.installed
# for chaos, schedules and fuzz
KILLS ?= 1000
SCHEDULES ?= 500
RUNS ?= 10000000
SEED ?= 1

.PHONY: help demo demo-recording test test-docker chaos schedules crash-points fuzz check docs golden clean
.DELETE_ON_ERROR:

help:  ## say what each word does
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile

demo: $(STAMP)  ## run the whole system on this machine on real data
	$(VENV)/bin/alignfed demo

demo-recording: $(STAMP)  ## record the demo anew for the tests; read docs/replay.md before you commit it
	rm -f tests/golden/demo.rec
	$(VENV)/bin/python -m examples.smart_home.demo_recording tests/golden/demo.rec

test: $(STAMP)  ## run every test, the slow ones too
	$(VENV)/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## check format, lint, types and import rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test-docker: $(STAMP)  ## build the images and try the compose stack: kills, cuts, ledger; needs root
	$(VENV)/bin/python -m pytest tests/docker -rs

chaos: $(STAMP)  ## ten made-up worlds for each of KILLS kills of a real federation, by SEED; the last line is JSON
	@$(VENV)/bin/python -m tests.schedules --schedules $$((10 * $(KILLS))) --seed $(SEED)
	@$(VENV)/bin/python -m chaos --kills $(KILLS) --seed $(SEED)

schedules: $(STAMP)  ## play SCHEDULES made-up worlds from SEED on, and check every promise; prints JSON
	@$(VENV)/bin/python -m tests.schedules --schedules $(SCHEDULES) --seed $(SEED)

crash-points: $(STAMP)  ## kill, and fail, each store at its every call to the disk; needs strace; prints JSON
	@$(VENV)/bin/python -m tests.crash_points

fuzz: $(STAMP)  ## search every decoder for bytes that break it; RUNS=10000000, the last line is a summary in JSON
	@$(VENV)/bin/python -m fuzz --runs $(RUNS) --seed $(SEED)

docs: $(STAMP)  ## build the documentation into site/; a link to nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

golden: $(STAMP)  ## rewrite golden transcripts and generated documents; read the diff before committing
	$(VENV)/bin/python -m pytest tests/golden tests/docs --rewrite

clean:  ## remove the environment and the caches; runs/ and alignfed-data/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an install that was cut off is taken up again, a finished one costs nothing.
$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "alignfed needs Python 3.11 or newer. Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv." \
	       "Or name another Python: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

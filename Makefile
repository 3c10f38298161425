# `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
GROUPS_INSTALLED ?= --group dev --group docs
# Python compiles a module when it is first imported: to compile all of them takes longer than to install them.
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE
JOBS   ?= 5
# The engines that tests write databases with: the oldest that Session-Buddy accepts, and the newest.
WRITER_VERSION := 1.5.3
NEWER_WRITER_VERSION := 2.0.1
NEWER_WRITER_READY := $(VENV)/writer-$(NEWER_WRITER_VERSION)/.ready
WRITER := $(VENV)/writer/.ready-$(WRITER_VERSION) $(NEWER_WRITER_READY)
# Version 1 of the MCP SDK, which Session-Buddy needs, with its HTTP client: the tests of the MCP server run with 1 and 2.
MCP1_VERSION := 1.30.0
MCP1 := $(VENV)/mcp1/.ready-$(MCP1_VERSION)
MINUTES ?= 30
SEED ?= 1
FAULTS_JOBS := $(if $(filter command line environment,$(origin JOBS)),--jobs $(JOBS))
# The tests that may depend on the interpreter: pure code, tasks and sockets, the built wheel.
ALSO   := tests/unit tests/integration/test_nats_cancellation.py tests/integration/test_akosha_mcp.py tests/e2e/test_wheel.py

# The Akosha server of PyPI, in its own environment: it needs a newer Python, and other versions of the dependencies.
AKOSHA         := .venv-interop
AKOSHA_VERSION := 0.11.0
AKOSHA_READY   := $(AKOSHA)/.ready-$(AKOSHA_VERSION)
# The newest Session-Buddy and this agent, resolved together; again when the dependencies of the agent change.
BESIDE         := .venv-beside
BESIDE_READY   := $(BESIDE)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test cover test-one test-also setup-also on-3.13 test-here test-mcp1 interop interop-here check docs picture format events bench bench-fleet faults faults-full fuzz soak clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(READY) $(WRITER) $(MCP1)  ## create .venv from constraints.txt, if it is missing or out of date

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) 'pip>=25.1'
	$(PIP_INSTALL) -c constraints.txt $(GROUPS_INSTALLED) -e .
	@touch $@

$(VENV)/writer/.ready-$(WRITER_VERSION): $(READY)
	@rm -rf $(VENV)/writer
	$(PIP_INSTALL) --no-deps --no-warn-conflicts --target $(VENV)/writer duckdb==$(WRITER_VERSION)
	@touch $@

$(NEWER_WRITER_READY): $(READY)
	@rm -rf $(@D)
	$(PIP_INSTALL) --no-deps --no-warn-conflicts --target $(@D) duckdb==$(NEWER_WRITER_VERSION)
	@touch $@

$(MCP1): $(READY)
	@rm -rf $(VENV)/mcp1
	$(PIP_INSTALL) --no-deps --no-warn-conflicts --target $(VENV)/mcp1 \
	  mcp==$(MCP1_VERSION) httpx==0.28.1 httpcore==1.0.9 httpx-sse==0.4.3
	@touch $@

demo: $(READY)  ## run the agent on a scratch database; needs no server and no account
	$(BIN)/akosha-agent demo

test: $(READY) $(WRITER) $(MCP1)  ## run the tests
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

cover: $(READY) $(WRITER) $(MCP1)  ## measure the coverage of all tests that are not marked long
	@rm -f .coverage .coverage.*
	AKOSHA_TESTS_EXECUTE=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not long' --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --fail-under=85
	$(BIN)/coverage report --fail-under=90 --include='agent/domain/*,agent/application/*'

test-one: $(READY) $(WRITER) $(MCP1)  ## run one test: make test-one T=tests/unit/test_routing.py::test_name
	$(BIN)/python -m pytest -q $(T)

test-also:  ## run the tests that may depend on the interpreter, on Python 3.13 if it is installed
	@$(MAKE) --no-print-directory on-3.13 GOAL=test-here

setup-also:  ## create the virtual environment of test-also
	@$(MAKE) --no-print-directory on-3.13 GOAL=.venv-3.13/.ready

on-3.13:
	@for python in "$$(command -v python3.13)" $$HOME/.pyenv/versions/3.13*/bin/python3.13; do \
	  if [ -x "$$python" ] && "$$python" -c '' 2>/dev/null; then \
	    exec $(MAKE) --no-print-directory PYTHON="$$python" VENV=.venv-3.13 GROUPS_INSTALLED="--group test" ARGS='-m "not long" $(ALSO) $(ARGS)' $(GOAL); \
	  fi; \
	done; echo "Python 3.13 is not installed: skipped"

test-here: $(READY)  # unit tests do not wait: as many workers as cores
	$(BIN)/python -m pytest -q -n logical --dist worksteal $(ARGS)

test-mcp1: $(READY) $(MCP1)  ## test the MCP server with version 1 of the SDK
	$(BIN)/python -m pytest -q -k mcp1 tests/e2e/test_mcp_server.py $(ARGS)

interop: $(READY)  ## test against the real Akosha (900 MB in .venv-interop) and Session-Buddy (.venv-beside); needs Python 3.13 or newer
	@if [ -n "$$AKOSHA_PYTHON" ]; then exec $(MAKE) --no-print-directory interop-here; fi; \
	for python in "$$(command -v python3.13)" "$$(command -v python3.14)" $$HOME/.pyenv/versions/3.1[34]*/bin/python3.1[34]; do \
	  if [ -x "$$python" ] && "$$python" -c '' 2>/dev/null; then \
	    exec $(MAKE) --no-print-directory NEWER="$$python" NEEDED="$(AKOSHA_READY) $(BESIDE_READY)" \
	      AKOSHA_PYTHON=$(CURDIR)/$(AKOSHA)/bin/python SESSION_BUDDY_PYTHON=$(CURDIR)/$(BESIDE)/bin/python interop-here; \
	  fi; \
	done; echo "Python 3.13 or newer is not installed: skipped"

interop-here: $(READY) $(NEEDED)
	@if [ -f $(BESIDE_READY) ]; then $(BESIDE)/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .; fi
	$(BIN)/python -m pytest -q tests/interop $(ARGS)

$(AKOSHA_READY):
	$(NEWER) -m venv --clear $(AKOSHA)
	$(AKOSHA)/bin/pip install --quiet --disable-pip-version-check --pre akosha==$(AKOSHA_VERSION)
	@touch $@

$(BESIDE_READY): pyproject.toml
	$(NEWER) -m venv --clear $(BESIDE)
	$(BESIDE)/bin/pip install --quiet --disable-pip-version-check session-buddy .
	@touch $@

check: $(READY)  ## run ruff, mypy --strict, import-linter, bandit, pip-audit, and the checks of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -c pyproject.toml -r agent docs
	$(BIN)/python tests/checks/audit.py
	$(BIN)/python -m pytest -q tests/checks

docs: $(READY)  ## build the documentation as a site: build/site/index.html
	@rm -rf build/site
	$(BIN)/python -m docs.generator build/docs
	$(BIN)/zensical build --strict

picture: $(READY)  ## make the pictures in README and the guides from real runs; those of the page need Chromium
	$(BIN)/python docs/images/terminal.py
	$(BIN)/python -m tests.support.page_pictures

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

events: $(READY)  ## generate docs/events from the event classes
	$(BIN)/python docs/events/generate.py

faults: $(READY)  ## strike a running agent with faults, and check that nothing is lost: make faults SEED=1 MINUTES=15
	$(BIN)/python tests/campaign/run.py --seed $(SEED) --minutes $(if $(filter command line environment,$(origin MINUTES)),$(MINUTES),15) $(FAULTS_JOBS) $(ARGS)

faults-full: $(READY)  ## all rounds of all faults, up to 90 minutes; goes on after a stop; writes docs/reliability.md: make faults-full SEED=1
	$(BIN)/python tests/campaign/run.py --seed $(SEED) --full --keep build/faults.jsonl --report $(FAULTS_JOBS) $(ARGS)

fuzz: $(READY)  ## generate invalid input for everything that is read from outside: make fuzz MINUTES=30
	$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES) $(ARGS)

soak: $(READY)  ## run an agent under load and check that it does not grow: make soak HOURS=2, or MINUTES=30
	$(BIN)/python tests/soak/run.py $(if $(HOURS),--hours $(HOURS),--minutes $(MINUTES)) $(ARGS)

bench: $(READY)  ## measure the figures of docs/benchmarks.md on this machine
	$(BIN)/python tests/bench/run.py $(ARGS)

bench-fleet: $(READY)  ## connect 1,000 and 5,000 agents to one nats-server, and measure it: make bench-fleet ARGS="--agents 1000"
	$(BIN)/python tests/bench/fleet.py $(ARGS)

clean:  ## remove everything that these targets create
	rm -rf .venv .venv-* .cache .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build docs/reference

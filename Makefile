# Everything is done through here. Needed: make and a Python >= 3.11 with its venv module; the rest goes into .venv.

VENV := .venv
BIN  := $(VENV)/bin

# The first of these that really runs, is new enough and can make an environment is used: a shim without a version
# behind it does not run, and a distribution may ship python3 without venv. PYTHON=... puts another one first.
PYTHONS := $(PYTHON) python3.13 python3.12 python3.11 python3
CAN_RUN := import sys; sys.exit(sys.version_info < (3, 11))
CAN_VENV := import ensurepip, venv

RUNTIME := $(VENV)/installed
DEV     := $(VENV)/installed-dev
PIP     := $(BIN)/python -m pip --disable-pip-version-check

# Each file is what some environment holds, down to the last package, with the hash of every file that there is of it.
# The package itself is then installed with what has come by hash alone.
PINS    := requirements
INSTALL := $(PIP) install --quiet --require-hashes
OURS    := $(PIP) install --quiet --no-deps --no-build-isolation --editable .
TOOLS   := build/tools
COMPILE := CUSTOM_COMPILE_COMMAND='make requirements' $(TOOLS)/bin/pip-compile --quiet --generate-hashes \
    --allow-unsafe --strip-extras --annotation-style line --no-emit-options $(ARGS)

# Advisories that SECURITY.md accepts, and says why.
ACCEPTED := CVE-2025-69872

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help serve demo bench test fuzz soak faults-all crash-all e2e-programs check lint types floors format docs requirements audit clean

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

serve: $(RUNTIME) ## set up what is missing and serve on 127.0.0.1:5000, with the cache in ./data
	$(BIN)/python -m mirror serve

demo: $(DEV) ## pull an image twice through a mirror and show what that saved; needs no internet
	$(BIN)/python -m examples.demo

bench: $(DEV) ## measure the mirror beside other servers, which are brought where they are missing (ARGS="blobs --quick")
	$(BIN)/python -m bench.install
	$(BIN)/python -m bench $(ARGS)

test: $(DEV) ## set up what is missing and run the tests (ARGS="-m e2e -x" goes to pytest)
	$(BIN)/python -m pytest $(ARGS)

fuzz: $(DEV) ## try 20,000 odd requests, 2,000 with each parser, other ones each time (EXAMPLES=100000 for more)
	FUZZ_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/python -m pytest tests/behaviour/test_fuzz.py tests/fuzz

crash-all: $(DEV) ## 200 kills and 300 power losses, other ones each time (minutes), and what they cost
	CRASH_KILLS=$(or $(KILLS),200) CRASH_CUTS=$(or $(CUTS),300) $(BIN)/python -m pytest -s tests/crash

soak: $(DEV) ## half an hour of clients, upstream faults and evictions: does anything grow? (MINUTES=2 for less)
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),30) $(if $(JSON),--json $(JSON))

faults-all: $(DEV) ## play every row of the table of upstream faults (up to ten minutes) and note it for the documentation
	$(BIN)/python -m tests.faults
	$(BIN)/python -m docs.render

e2e-programs: | $(BIN)/python ## make the programs for end-to-end tests that Debian lacks (needs Go; minutes, once)
	$(BIN)/python -m tests.e2e.build_programs

check: lint types floors test ## everything that has to pass before a change lands

lint: $(DEV) ## style and common mistakes
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV) ## static types
	$(BIN)/mypy

floors: $(DEV) ## imports point down only
	$(BIN)/lint-imports

format: $(DEV) ## rewrite the sources in our style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DEV) ## renew the generated parts of the documentation
	$(BIN)/python -m docs.render

requirements: $(TOOLS)/installed ## pin what pyproject.toml wants and is not pinned yet (ARGS=--upgrade for the newest of all)
	$(COMPILE) --output-file $(PINS)/runtime.txt pyproject.toml
	$(COMPILE) --output-file $(PINS)/nodes.txt --constraint $(PINS)/runtime.txt --extra nodes pyproject.toml
	$(COMPILE) --output-file $(PINS)/dev.txt --constraint $(PINS)/nodes.txt --extra dev --extra nodes pyproject.toml
	$(COMPILE) --output-file $(PINS)/build.txt --only-build-deps --build-deps-for editable pyproject.toml
	$(COMPILE) --output-file $(PINS)/tools.txt $(PINS)/tools.in

audit: $(TOOLS)/installed ## look the pinned versions up among known vulnerabilities; needs the internet
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes $(ACCEPTED:%=--ignore-vuln %) \
	    $(foreach file,runtime nodes dev build tools,--requirement $(PINS)/$(file).txt)

clean: ## remove what the other targets made; the cache in ./data stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): pyproject.toml $(PINS)/build.txt $(PINS)/runtime.txt | $(BIN)/python
	$(INSTALL) --requirement $(PINS)/build.txt --requirement $(PINS)/runtime.txt
	$(OURS)
	@touch $@

$(DEV): pyproject.toml $(PINS)/build.txt $(PINS)/runtime.txt $(PINS)/dev.txt | $(BIN)/python
	$(INSTALL) --requirement $(PINS)/build.txt --requirement $(PINS)/dev.txt
	$(OURS)
	@touch $@ $(RUNTIME)

$(TOOLS)/installed: $(PINS)/tools.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement $<
	@touch $@

# A link to a Python that is gone counts as missing here, so the environment is then made anew.
$(BIN)/python:
	@bare=; \
	for python in $(PYTHONS); do \
	    "$$python" -c '$(CAN_RUN)' >/dev/null 2>&1 || continue; \
	    if "$$python" -c '$(CAN_VENV)' >/dev/null 2>&1; then \
	        echo "Making $(VENV) with $$python"; \
	        "$$python" -m venv --clear $(VENV) && exit 0; \
	        rm -rf $(VENV); exit 1; \
	    fi; \
	    bare=$${bare:-$$python}; \
	done; \
	if [ -n "$$bare" ]; then \
	    echo "$$bare cannot make virtual environments: install its venv module (on Debian: apt install python3-venv)." >&2; \
	else \
	    echo "No Python >= 3.11 found among: $(PYTHONS). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	fi; \
	exit 1

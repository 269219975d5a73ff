# `make help` lists the targets. Everything is installed into .venv, with the first python3 >= 3.10 found;
# PYTHON=/path/to/python3 chooses another. A stamp file in .venv remembers what was installed, so that a target only
# installs again when the package's metadata or its C source changed.

VENV := .venv
BIN := $(VENV)/bin
BIND ?= 127.0.0.1:8080
TEMPLATE ?= api
PYTHON ?=

# FAIRVISOR_COMPILE= (empty) leaves the Python modules of the decision path as they are: quicker to install, slower to run.
FAIRVISOR_COMPILE ?= 1
INSTALL := FAIRVISOR_COMPILE=$(FAIRVISOR_COMPILE) $(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517

COMPILED := $(if $(FAIRVISOR_COMPILE),$(shell sed -n 's/^    "\(fairvisor[^"]*\.py\)",.*/\1/p' setup.py))
SOURCES_OF_THE_INSTALL := setup.cfg setup.py pyproject.toml $(wildcard fairvisor/*/*.[ch]) $(COMPILED)
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help run test lint count mutants model sanitize fuzz campaign-haproxy campaign-arm64 check format docs wheels pins audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

run: $(RUN_STAMP) policy.json ## build, install and serve policy.json on BIND (127.0.0.1:8080)
	@printf '%s\n' '' 'Try, in another terminal; the sample policy lets 5 pass at once, then one every 2 seconds:' '' \
	    "  curl -i -H 'X-Original-Method: GET' -H 'X-Original-URI: /api/orders' http://$(BIND)/v1/decision" \
	    "  curl -i http://$(BIND)/readyz" '' \
	    'Ask without a server what a policy does with a request, and why:' '' \
	    "  $(BIN)/fairvisor explain policy.json --path /api/orders" ''
	@exec $(BIN)/fairvisor serve --config-file policy.json --bind $(BIND)

test: $(DEV_STAMP) ## every test that needs no server on this machine; the rest is listed at the end
	$(BIN)/python -m pytest

lint: $(DEV_STAMP) ## format, lint, types, and the C source with warnings as errors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	FAIRVISOR_WERROR=1 $(BIN)/python setup.py -q build_ext --force --build-temp $(VENV)/werror --build-lib $(VENV)/werror

count: $(DEV_STAMP) ## the instructions of a decision, under valgrind: at most 5 % above what perf/instructions.json holds
	$(BIN)/python perf/instructions.py

mutants: $(DEV_STAMP) ## break every promise in turn, in a copy: a test must notice (some minutes; WORDS="kill_switch" chooses)
	$(BIN)/python tests/mutants $(WORDS)

model: $(DEV_STAMP) ## every interleaving of the slot protocol, of up to 3 processes with kills (some minutes; WORDS chooses)
	$(BIN)/python tests/model $(WORDS)

sanitize: $(DEV_STAMP) ## the C code under ASan, UBSan and TSan, for longer than the tests do
	FAIRVISOR_SANITIZER_OPERATIONS=20000000 $(BIN)/python -m pytest tests/test_sanitizers.py

EXECUTIONS ?= 10000000

fuzz: $(DEV_STAMP) ## EXECUTIONS (10,000,000) inputs that nobody wrote into all that reads (an hour; WORDS="jwt --seed 7" chooses)
	PYTHONPATH=. $(BIN)/python tests/fuzz --executions $(EXECUTIONS) $(WORDS)

HEADS ?= 10000

campaign-haproxy: $(DEV_STAMP) ## HEADS (10,000) random heads of up to 200 lines for each HAProxy: it lives, and none passes uncounted
	$(BIN)/python tests/gateways/random_heads.py --heads $(HEADS) --write perf/results/haproxy-heads.json

campaign-arm64: ## the C extensions for arm64, their tests under emulation (20 minutes, on Debian 12 as root)
	.ci/arm64

check: lint test ## all that CI asks (the tests also hold the documentation to the code)

format: $(DEV_STAMP) ## put the code into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV_STAMP) ## write the generated pages of docs/ again
	$(BIN)/python docs/generate.py

wheels: ## source distribution and wheels in dist/, each installed and tested on its Python (3.10 to 3.13, as found)
	.ci/wheels

pins: ## pin the newest versions, with their hashes, for the image and the tools of a release (needs the network)
	$(if $(PYTHON),PYTHON=$(PYTHON)) .ci/pins

audit: ## known vulnerabilities of what is installed to run; asks PyPI, so it needs the network
	$(if $(PYTHON),PYTHON=$(PYTHON)) .ci/audit

clean: ## remove what the other targets made; policy.json stays
	rm -rf $(VENV) perf/.venv build dist *.egg-info *.so fairvisor/*.so fairvisor/*/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

policy.json: | $(RUN_STAMP)
	@$(BIN)/fairvisor init --template $(TEMPLATE) >/dev/null
	@echo 'Wrote policy.json and edge.env.example from the template "$(TEMPLATE)".'

$(BIN)/python:
	@for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10; do \
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue; \
	    "$$candidate" -m venv $(VENV) && exit 0; \
	    echo "$$candidate cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; \
	    rm -rf $(VENV); exit 1; \
	done; \
	echo "Python 3.10 or later was not found. Install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1

COMMA := ,

# The tools of the tests come together with what serving needs: the decision path is compiled once, not twice.
$(RUN_STAMP): $(SOURCES_OF_THE_INSTALL) | $(BIN)/python
	$(call install,.[meinheld],.)

$(DEV_STAMP): $(SOURCES_OF_THE_INSTALL) | $(BIN)/python
	$(call install,.[dev$(COMMA)meinheld],.[dev])
	@touch $(RUN_STAMP)

define install
@echo 'Installing Fairvisor Edge and what it needs into $(VENV) (a few minutes the first time: the decision path is compiled)...'
@MEINHELD_NOGREEN=1 $(INSTALL) --editable '$(1)' || { \
    echo 'With the optional meinheld worker it did not install; going on without meinheld.' >&2; \
    $(INSTALL) --editable '$(2)'; }
@touch $@
endef

# Needs GNU make, git and Python 3.11 or newer with pip; everything else is installed into .venv.
#
#   make PYTHON=python3.12 …    another interpreter for .venv
#   make test ARGS="-k lease"   arguments passed on to the tool

PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python,$(call usable,$(name))))
VENV ?= .venv
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# Threads of torch that spin while they wait starve whatever else runs on the machine, and each other.
export OMP_WAIT_POLICY := PASSIVE

OLDEST_PYTHON := 3, 11
usable = $(shell command -v $(1) >/dev/null && $(1) -c 'import sys; sys.exit(sys.version_info < ($(OLDEST_PYTHON)))' 2>/dev/null && echo $(1))

BIN := $(VENV)/bin
# Named after what it installed: a changed requirements file asks for a new install, a touched one does not.
# Written last: an install that was cut short is not mistaken for a whole one.
INSTALLED := $(VENV)/.installed-$(shell cksum < requirements/dev.txt | cut -d ' ' -f 1)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## ---- use ----

.PHONY: demo
demo: $(INSTALLED) ## train and serve handwritten digits, from upload to prediction, in a few minutes
	@$(BIN)/python -m demo $(ARGS)

.PHONY: up
up: $(INSTALLED) ## start the service on this machine, in the foreground
	@$(BIN)/python -m embedded up $(ARGS)

.PHONY: db-upgrade
db-upgrade: $(INSTALLED) ## bring the database of IDAT_DATABASE_URL to the newest schema
	@$(BIN)/python -m migrations upgrade

## ---- develop ----

.PHONY: setup
setup: $(INSTALLED) ## create .venv and install into it what everything else here needs

.PHONY: test
test: $(INSTALLED) ## run the tests (ARGS are pytest's)
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: check
check: $(INSTALLED) ## format, lint, types, import rules, container files; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker/compose.gpu.yml
	bash -n .ci/run

.PHONY: fix
fix: $(INSTALLED) ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is installed is pinned with hashes. Pins stay as they are unless an .in file asks for more;
# ARGS=--upgrade takes the newest, ARGS="--upgrade-package NAME" one of them.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

.PHONY: lock
lock: $(INSTALLED) ## compile requirements/*.in to pinned, hashed requirements/*.txt
	$(COMPILE) $(ARGS) requirements/dev.in -o requirements/dev.txt
	$(COMPILE) -c requirements/dev.txt requirements/full.in -o requirements/full.txt
	$(COMPILE) -c requirements/dev.txt requirements/control.in -o requirements/control.txt

.PHONY: clean
clean: ## remove .venv and the tools' caches; data directories stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED):
	@if [ -z "$(PYTHON)" ] || [ -z "$(call usable,$(PYTHON))" ]; then \
		echo "Python 3.11 or newer is needed$(if $(PYTHON),; PYTHON=$(PYTHON) is not); name one with: make PYTHON=/path/to/python3.11 …" >&2; \
		exit 1; \
	fi
	@echo "Installing into $(VENV); the first time this takes some minutes."
	@rm -f $(VENV)/.installed-*
	@if ! $(BIN)/python -c '' 2>/dev/null; then $(PYTHON) -m venv --clear $(VENV); fi
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

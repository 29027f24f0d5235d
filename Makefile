# What people type and what CI types are the same words. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= proxy_config.yaml
ARGS ?=
PYTEST_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# PYTHON=/path/to/python3 chooses the interpreter that the environment is made with.
export PYTHON
# Containers often set this. The tests start Python dozens of times: compiled once, each start takes
# a quarter less.
unexport PYTHONDONTWRITEBYTECODE

YAML_FILES = $(wildcard docker-compose.yml deploy/compose/*.yml)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# ---- environment: made once, and again when pyproject.toml changes ----

$(VENV)/.installed: pyproject.toml scripts/bootstrap.sh
	@scripts/bootstrap.sh $(VENV)
	@echo "Installing magic-proxy into $(VENV)"
	@$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -q -e . --group dev
	@touch $@

.PHONY: install dev
install: $(VENV)/.installed ## Make the environment with the proxy in it
dev: $(VENV)/.installed-dev ## The same, with the tools for tests and checks

# ---- use ----

.PHONY: run demo
run: install ## Serve on 127.0.0.1:8080 with proxy_config.yaml (ARGS="--port 9000" adds options)
	@exec $(BIN)/magic-proxy serve --config $(CONFIG) $(ARGS)

demo: dev ## Show MISS and HIT offline, with a stand-in for the API
	@exec $(BIN)/magic-proxy demo $(ARGS)

# ---- checks and tests ----

.PHONY: test test-cold check bench
# Runs the checks first, so that pytest's own closing line is the last line.
test: dev ## All checks, then all tests
	@scripts/ensure-redis.sh
	@$(MAKE) check
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# The hits of all kinds of clients; with PYTEST_ARGS="" the whole suite.
test-cold: PYTEST_ARGS = tests/integration -k "sdk or contract or client_control or freshness or purge or variants"
test-cold: dev ## What clients see of hits, with the hot path switched off
	@HOT_PATH=off $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

check: dev ## Lint, formatting, types, import layers, Dockerfile, compose and settings files
	@$(MAKE) --jobs=2 --output-sync check-types check-files

# Takes as long as all others together.
.PHONY: check-types check-files
check-types: dev
	@echo "== mypy --strict";   $(BIN)/mypy --no-error-summary

check-files: dev
	@echo "== ruff check";      $(BIN)/ruff check --quiet .
	@echo "== ruff format";     $(BIN)/ruff format --check --quiet .
	@echo "== import layers";   $(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache
	@echo "== hadolint";        $(BIN)/hadolint Dockerfile
	@echo "== compose schema";  $(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec $(YAML_FILES)
	@echo "== settings schema"; scripts/check-settings.sh $(BIN)

bench: dev ## Figures of this machine beside nginx and LiteLLM (ARGS="hit" picks from bench/)
	@exec scripts/bench.sh $(BIN) $(ARGS)

# ---- the rest ----

.PHONY: guard lock image hooks clean distclean
guard: dev ## Count anew what a request takes, and hold it (tests/guard/counts.json)
	@$(BIN)/python -m tests.guard.held

lock: dev ## Pin the image's dependencies again, with hashes (requirements/*.txt)
	@scripts/lock.sh $(BIN)

image: ## Build the container image
	docker build --tag magic-proxy:local .

hooks: dev ## Run the quick checks before each commit
	@$(BIN)/pre-commit install

clean: ## Remove caches and build results
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## The same, and the environment
	@rm -rf $(VENV)

# What people do with this repository. `make` alone lists it.
#
#   PYTHON=…   the Python to make .venv with (3.11 or newer); without it one is looked for
#   VENV=…     where the environment is; .venv unless said
#   ARGS=…     passed to the command behind the target

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?=
ARGS ?=

# The parts whose behaviour is all in their tests, and the share of them that tests must run.
PURE := 'goalstate/gs/*' goalstate/dpm/core.py goalstate/dpm/inventory.py goalstate/agent/core.py \
	goalstate/agent/repair.py goalstate/agent/subscriptions.py
COVERED := 95

# The environment's own Python, else the one asked for, else the first that is new enough. (The name
# of a version manager's shim proves nothing: each candidate is started.)
PYTHONS := $(BIN)/python $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)
define environment
@for python in $(PYTHONS); do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	exec "$$python" deploy/environment.py --into "$(VENV)" $(1); \
done; \
echo "make: no Python 3.11 or newer: $(or $(PYTHON),python3) is" \
	"$$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)" >&2; \
echo "Install one, or name it: make PYTHON=/path/to/python3.11 …" >&2; exit 1
endef

.PHONY: help
help: ## this list
	@echo 'usage: make TARGET [ARGS=…] [PYTHON=/path/to/python3.11]'
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

.PHONY: run-environment dev-environment
run-environment:
	$(call environment,requirements.lock)

dev-environment:
	$(call environment,requirements-dev.lock)

.PHONY: demo
demo: run-environment ## broker, publisher and a fleet of hosts, and changes travelling between them
	@$(BIN)/goalstate demo $(ARGS)

.PHONY: test
test: dev-environment ## all tests; with ARGS only those that pytest then takes (ARGS="-k digest")
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest --cov --cov-report=term --cov-report=xml
	@for part in $(PURE); do \
		share=$$($(BIN)/coverage report --format=total --precision=1 --include="$$part"); \
		$(BIN)/coverage report --format=total --include="$$part" --fail-under=$(COVERED) \
			>/dev/null || { echo "make: tests run $$share % of $$part: under $(COVERED)" >&2; \
			exit 1; }; \
	done
else
	@$(BIN)/python -m pytest $(ARGS)
endif

.PHONY: lint
lint: dev-environment ## style, types, rooms, generated code, lock files, compose file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python proto/generate.py --check
	$(BIN)/python deploy/locks.py --check
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/deploy/test_compose.py
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

.PHONY: fmt
fmt: dev-environment ## format the code, and mend what can be mended without judgement
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: dev-environment ## goalstate/gs/pb from the .proto files
	$(BIN)/python proto/generate.py

.PHONY: bench
bench: dev-environment ## measurements beside the plain Pulsar client, on the same broker
	@$(BIN)/python -m bench $(ARGS)

.PHONY: fuzz
fuzz: dev-environment ## every reader of foreign bytes, a minute each; ARGS="--target yaml --seconds 600"
	@$(BIN)/python -m fuzz $(ARGS)

.PHONY: chaos
chaos: run-environment ## kill and cut off every part under load, 10 minutes; ARGS="--seed 7 --minutes 2"
	@$(BIN)/goalstate chaos $(ARGS)

.PHONY: lock
lock: dev-environment ## the lock files from pyproject.toml; ARGS=--upgrade for newest versions
	$(BIN)/python deploy/locks.py $(ARGS)

.PHONY: clean
clean: ## remove what checks and builds left behind; .venv stays
	rm -rf .coverage .coverage.* coverage.xml build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find goalstate proto tests bench deploy -name __pycache__ -type d -prune -exec rm -rf {} + \
		2>/dev/null || true

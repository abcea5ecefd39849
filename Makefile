# The one door: everything a user, a developer or CI does starts here. `make help` lists it.
SHELL := /bin/bash
VENV := .venv
CONFIG ?= configs/local.yaml
PORT ?=
LOGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve engine test lint type format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo "  options of serve: CONFIG=configs/NAME.yaml  PORT=8001  LOGS=1   of every first run: PYTHON=python3.12"

# Stamps inside the environment: a new pyproject.toml installs again, anything else starts at once.
$(VENV)/.installed-build $(VENV)/.installed-dev: $(VENV)/.installed-%: pyproject.toml scripts/install
	@scripts/install $(VENV) $*

engine: $(VENV)/.installed-build ## build the engine that CONFIG serves, if it is not there
	@$(VENV)/bin/engine-build ensure --config $(CONFIG)

serve: engine ## install, build the default engine and serve it, until Ctrl-C
	@exec $(VENV)/bin/image-serve start $(CONFIG) $(if $(PORT),--port $(PORT)) $(if $(LOGS),--logs)

test: $(VENV)/.installed-dev ## every test, the real service among them
	@scripts/test_tools
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-dev ## ruff, and the lint of configs/
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/image-serve lint configs/*.yaml

type: $(VENV)/.installed-dev ## mypy --strict
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev ## let ruff rewrite the layout
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove the environment and the built engines
	rm -rf $(VENV) engines

# Two commands do everything on a fresh machine: make demo, make test; make evaluate measures what make demo trained.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO   ?= outputs/demo_$(shell date +%Y-%m-%d_%H-%M-%S)
NEWEST  = $(firstword $(shell ls -td outputs/demo_*/ 2>/dev/null))
RUNS   ?= $(NEWEST)
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo evaluate test lint format types clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.run-installed ## nine losses, three seeds, on the embedded data; ends with the picture and the report
	$(PY) -m caldpo.train -m experiment=demo hydra.sweep.dir=$(DEMO) $(ARGS)
	$(PY) -m caldpo.compare $(DEMO)

evaluate: $(VENV)/.eval-installed ## every suite on the newest demo (or RUNS=outputs/SWEEP), the judge rehearsed; its report anew
	@test -n "$(RUNS)" || { echo "there is no demo to evaluate yet: make demo"; exit 2; }
	$(PY) -m caldpo.evaluate $(RUNS) 'suite=[preference,displacement,oracle,judge,leaderboard]' \
	  oracle.checkpoints=all judge.rehearse=true 'leaderboard.tasks=[held_out_pairs]' $(ARGS)

test: $(VENV)/.dev-installed ## all tests, offline, on the CPU
	$(PY) -m pytest -n 2 $(ARGS)

lint: $(VENV)/.dev-installed ## ruff, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.dev-installed ## put the code in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove the environment and caches, not the outputs
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# What is installed is remembered in these files, so that a second call installs nothing.
$(VENV)/.run-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing caldpo into $(VENV) (once)"
	$(PIP) -e '.[sweep]'
	@touch $@

$(VENV)/.eval-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing caldpo and what its evaluation needs into $(VENV) (once)"
	$(PIP) -e '.[sweep,eval,judge]'
	@touch $@ $(VENV)/.run-installed

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing caldpo and what its tests need into $(VENV) (once)"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.run-installed $(VENV)/.eval-installed

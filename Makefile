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
.PHONY: help demo evaluate test test-all lint docs secrets audit format types clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.run-installed ## nine losses, three seeds, on the embedded data; ends with the picture and the report
	$(PY) -m caldpo.train -m experiment=demo hydra.sweep.dir=$(DEMO) $(ARGS)
	$(PY) -m caldpo.compare $(DEMO)

evaluate: $(VENV)/.eval-installed ## every suite on the newest demo (or RUNS=outputs/SWEEP), a mock judge; regenerates its report
	@test -n "$(RUNS)" || { echo "there is no demo to evaluate yet: make demo"; exit 2; }
	$(PY) -m caldpo.evaluate $(RUNS) 'suite=[preference,displacement,oracle,judge,leaderboard]' \
	  oracle.checkpoints=all judge.mock=true 'leaderboard.tasks=[held_out_pairs]' $(ARGS)

test: $(VENV)/.dev-installed ## the fast tests, offline, on the CPU
	$(PY) -m pytest -n 2 $(ARGS)

test-all: $(VENV)/.dev-installed ## all tests: also runs that are killed and resumed, fuzzing, every architecture
	$(PY) -m pytest -n 2 -m "slow or not slow" $(ARGS)

lint: $(VENV)/.dev-installed secrets ## ruff, formatting, types, and secrets
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.dev-installed ## docs/ as a site in build/site, with the newest demo's page (trains one where there is none)
	@test -n "$(NEWEST)" || $(MAKE) demo
	$(PY) docs/configuration.py
	$(PY) docs/metrics.py
	newest=$$(ls -td outputs/demo_*/ | head -n 1) && $(PY) -m caldpo.compare $$newest && cp $${newest}report.html docs/demo_report.html
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet --config-file .mkdocs.yml

# The baseline holds hashes of the made-up ones in tests. A copy, since the hook writes line numbers that moved into it
# and then says 3.
secrets: $(VENV)/.dev-installed ## what looks like a secret in git's files and is not in .secrets.baseline; offline
	@known=$$(mktemp) && cp .secrets.baseline $$known && \
	$(PY) -m detect_secrets.pre_commit_hook --no-verify --baseline $$known \
	  --exclude-files '^\.secrets\.baseline$$' $$(git ls-files --cached --others --exclude-standard); code=$$?; rm -f $$known; \
	if [ $$code -ne 0 ] && [ $$code -ne 3 ]; then \
	  echo "Take it out; what is none: .venv/bin/detect-secrets scan --no-verify --exclude-files '^\.secrets\.baseline\$$' --baseline .secrets.baseline"; exit 1; fi

# Without the database nothing is known: that is told apart from a finding, and is no pass either.
audit: $(VENV)/.dev-installed ## known vulnerabilities of the packages in constraints.txt; asks pypi.org, needs the network
	@said=$$(mktemp); $(PY) -m pip_audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	  $(ARGS) 2> $$said; code=$$?; \
	if grep -qE 'ConnectionError|ProxyError|ConnectTimeout|ReadTimeout|SSLError|ServiceError|HTTPError' $$said; then \
	  echo "audit: NOT CHECKED, the advisory database did not answer: $$(grep -E 'Error|Timeout' $$said | tail -1 | cut -c1-200)"; \
	  echo "audit: run it where pypi.org can be reached, or name another database: make audit ARGS='-s osv'"; code=3; \
	else cat $$said; fi; rm -f $$said; exit $$code

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

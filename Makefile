# Every command a user types. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
UV_VERSION := 0.13.8

PROFILE ?= laptop
export PYTHONPATH := $(CURDIR)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/\1\t\2/' \
	  | awk -F'\t' '{sub("%", "<experiment>", $$1); printf "  \033[1mmake %-26s\033[0m %s\n", $$1, $$2}'

	@echo "experiments: $(subst _,-,$(basename $(notdir $(wildcard configs/claims/*.yaml))))"

.PHONY: setup
setup: $(VENV)/.ready ## Make the environment in .venv (every other command does it by itself)

# uv from the PATH where there is one, else fetched by pip into the environment.
$(VENV)/.ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv==$(UV_VERSION)
	@uv=$$(command -v uv || echo $(VENV)/bin/uv); $$uv pip install --quiet --compile-bytecode --python $(PY) --require-hashes -r requirements.lock
	@touch $@

.PHONY: lock
lock: $(VENV)/.ready ## Resolve requirements.lock again (maintainers)
	uv=$$(command -v uv || echo $(VENV)/bin/uv); $$uv pip compile pyproject.toml --extra suite --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock

# Every command below starts from the environment; the directory is the package root, so nothing needs installing.
READY := $(VENV)/.ready
given = $(filter-out undefined,$(origin $(1)))
chosen := --profile $(PROFILE) $(if $(call given,NORMS),--norms "$(NORMS)") $(if $(call given,SEEDS),--seeds "$(SEEDS)") $(if $(RESULTS),--results $(RESULTS))
until := $(if $(call given,UNTIL),$(UNTIL))
overrides := $(if $(until),until=$(until)) $(if $(DEVICE),device=$(DEVICE)) $(if $(DATA),data=$(DATA)) $(if $(TRACKING),tracking=$(TRACKING)) $(OVERRIDES)
# reproduce-order-embeddings -> order_embeddings
group = $(subst -,_,$*)

reproduce-%: $(READY) ## Run an experiment, judge its claims, draw its figure (PROFILE= NORMS= SEEDS= DEVICE= JOBS= UNTIL= OVERRIDES=)
	@$(PY) -m scripts.reproduce $(group) $(chosen) $(if $(JOBS),--jobs $(JOBS)) $(overrides)

plan-%: $(READY) ## Show what would run, what is done and how long the rest takes
	@$(PY) -m scripts.plan $(group) $(chosen) $(if $(until),--until $(until))

sweep-%: $(READY) ## The same, several runs at a time (JOBS= LAUNCHER=local|slurm); also sweep-learning-rate, sweep-batch-size
	@$(PY) -m scripts.sweep $(group) $(chosen) $(if $(JOBS),--jobs $(JOBS)) $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(overrides)

verdict-%: $(READY) ## Judge an experiment's claims again from its files, without training
	@$(PY) -m scripts.verdict $(group) --profile $(PROFILE) $(if $(RESULTS),--results $(RESULTS))

profile-%: $(READY) ## Show where the time of a training step goes at the paper's sizes (DEVICE= OVERRIDES=)
	@$(PY) -m scripts.profile_step $(group) $(overrides) $(if $(RESULTS),results=$(RESULTS))

findings: $(READY) ## Where the paper disagrees with its own figures: results/FINDINGS.md (ONLY=<name> prints one)
	@$(PY) -m scripts.findings $(if $(RESULTS),--results $(RESULTS)) $(if $(ONLY),--only $(ONLY))

.PHONY: findings dashboard wandb-sync dashboards readme report bench bench-train test lint clean
readme: $(READY) ## Rewrite the README's results table and list of findings
	@$(PY) -m scripts.readme

report: $(READY) ## Write results/index.html, the page to look at, and results/REPORT.md
	@$(PY) -m scripts.report $(if $(RESULTS),--results $(RESULTS))

dashboard: $(READY) ## Browse the runs in the terminal, without a network (wandb leet)
	@$(PY) -m scripts.wandb_sync --offline --results $(or $(RESULTS),results)
	@test -d $(or $(RESULTS),results)/wandb || { echo "error: there is no run to show yet; make reproduce-mnist makes some"; exit 1; }
	@$(VENV)/bin/wandb leet $(or $(RESULTS),results)/wandb

wandb-sync: $(READY) ## Upload every run to Weights & Biases, rebuilt from its files (needs a key)
	@$(PY) -m scripts.wandb_sync $(if $(RESULTS),--results $(RESULTS))

dashboards: $(READY) ## Make a W&B workspace and report per experiment (DRY_RUN=<folder> writes their JSON instead)
	@$(PY) -m scripts.dashboards --profile $(PROFILE) $(if $(RESULTS),--results $(RESULTS)) $(if $(DRY_RUN),--dry-run $(DRY_RUN))

bench: $(READY) ## Time the recurrent layers against their peers
	@$(PY) -m scripts.bench $(BENCH)

bench-train: $(READY) ## Time the training loop against a bare PyTorch loop
	@$(PY) -m scripts.bench_train

test: $(READY) ## Run the tests
	@$(PY) -m pytest -n 2 --dist loadfile $(PYTEST)

lint: $(READY) ## Check style (ruff) and types (mypy)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet . || { echo "run: $(VENV)/bin/ruff format ."; exit 1; }
	@$(VENV)/bin/mypy

clean: ## Remove the environment and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

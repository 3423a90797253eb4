# Every command a user types. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
UV_VERSION := 0.13.8
UV     := $$(command -v uv || echo $(VENV)/bin/uv)
OLDEST := .venv-oldest

PROFILE ?= laptop
export PYTHONPATH := $(CURDIR)

.PHONY: help
help: ## Show this list
	@awk '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z%-]+:.*## / {name = $$0; sub(/:.*/, "", name); sub("%", "<experiment>", name); sub(/^.*## /, ""); \
	    printf "  \033[1mmake %-24s\033[0m %s\n", name, $$0}' $(MAKEFILE_LIST)
	@echo
	@echo "experiments: $(subst _,-,$(basename $(notdir $(wildcard configs/claims/*.yaml))))"
	@echo "PROFILE=smoke (seconds), laptop (minutes, the default), full (the paper's protocol); docs/commands.md has the rest"

# What a user types reaches a command through its environment, where no shell or make reads anything into it.
define as_typed
ifneq ($$(origin $(1)),undefined)
override $(1) := $$(value $(1))
export $(1)
endif
endef
GIVEN := PROFILE NORMS SEEDS RESULTS DEVICE DATA TRACKING OVERRIDES JOBS UNTIL LAUNCHER DRY_RUN ONLY QUICK THEIRS LN_DATA LN_CACHE
$(foreach name,$(GIVEN),$(eval $(call as_typed,$(name))))
# A first look: one seed of each norm.
ifneq ($(filter-out 0,$(value QUICK)),)
ifeq ($(origin SEEDS),undefined)
export SEEDS := 0
endif
endif

# Every command below starts from the environment; the directory is the package root, so nothing needs installing.
READY := $(VENV)/.ready
results := $${RESULTS:+"--results=$$RESULTS"}
chosen := "--profile=$$PROFILE" $${NORMS+"--norms=$$NORMS"} $${SEEDS+"--seeds=$$SEEDS"} $(results)
until := $${UNTIL:+"--until=$$UNTIL"}
overrides := $${UNTIL:+"until=$$UNTIL"} $${DEVICE:+"device=$$DEVICE"} $${DATA:+"data=$$DATA"} $${TRACKING:+"tracking=$$TRACKING"} "--overrides=$$OVERRIDES"
jobs := $${JOBS:+"--jobs=$$JOBS"}
# reproduce-order-embeddings -> order_embeddings
reproduce-% plan-% sweep-% verdict-% profile-% data-%: export GROUP = $(subst -,_,$*)

##@ Run
reproduce-%: $(READY) ## Run an experiment, judge its claims, draw its figure (RESULTS=mine trains your own, QUICK=1 one seed a norm)
	@$(PY) -m scripts.reproduce "$$GROUP" $(chosen) $(jobs) $(overrides)

plan-%: $(READY) ## Show what would run, what is done and how long the rest takes
	@$(PY) -m scripts.plan "$$GROUP" $(chosen) $(until)

verdict-%: $(READY) ## Judge an experiment's claims again from its files, without training
	@$(PY) -m scripts.verdict "$$GROUP" "--profile=$$PROFILE" $(results)

.PHONY: data
data: $(READY) ## Show which data each experiment finds here, and where the rest is to be had, its terms and size
	@$(PY) -m scripts.data $(results)

data-%: $(READY) ## Fetch and prepare an experiment's data (DATA=substitute: what stands in for the original)
	@$(PY) -m scripts.data "$$GROUP" $${DATA:+"--data=$$DATA"}

##@ Look
.PHONY: report table compare findings dashboard dashboards wandb-sync
report: $(READY) ## Write results/index.html, the page to look at, and results/REPORT.md
	@$(PY) -m scripts.report $(results)

table: $(READY) ## Write results as data: runs.csv, a row for each run, and claims.csv, one for each check
	@$(PY) -m scripts.table $(results)

compare: $(READY) ## Lay another results folder beside this one (THEIRS=mine): verdicts, differences, curves
	@$(PY) -m scripts.compare $${THEIRS:+"$$THEIRS"} $(results)

findings: $(READY) ## Where the paper disagrees with its own figures: results/FINDINGS.md (ONLY=<name> prints one)
	@$(PY) -m scripts.findings $(results) $${ONLY:+"--only=$$ONLY"}

dashboard: $(READY) ## Browse the runs in the terminal, without a network (wandb leet)
	@$(PY) -m scripts.wandb_sync --offline $(results)
	@test -d "$${RESULTS:-results}/wandb" || { echo "error: there is no run to show yet; make reproduce-mnist makes some"; exit 1; }
	@$(VENV)/bin/wandb leet "$${RESULTS:-results}/wandb"

dashboards: $(READY) ## Make a W&B workspace and report per experiment (DRY_RUN=<folder> writes their JSON instead)
	@$(PY) -m scripts.dashboards "--profile=$$PROFILE" $(results) $${DRY_RUN:+"--dry-run=$$DRY_RUN"}

wandb-sync: $(READY) ## Upload every run to Weights & Biases, rebuilt from its files (needs a key)
	@$(PY) -m scripts.wandb_sync $(results)

##@ Sweep
sweep-%: $(READY) ## Run an experiment, several runs at a time (JOBS= LAUNCHER=local|slurm); also sweep-learning-rate, sweep-batch-size
	@$(PY) -m scripts.sweep "$$GROUP" $(chosen) $(jobs) $${LAUNCHER:+"--launcher=$$LAUNCHER"} $(overrides)

##@ Develop
.PHONY: setup lock test test-oldest lint readme gpu-check bench bench-train torture clean
setup: $(VENV)/.ready ## Make the environment in .venv (every other command does it by itself)

# uv from the PATH where there is one, else fetched by pip into the environment.
$(VENV)/.ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv==$(UV_VERSION)
	@uv=$(UV); $$uv pip install --quiet --compile-bytecode --python $(PY) --require-hashes -r requirements.lock
	@touch $@

lock: $(VENV)/.ready ## Resolve requirements.lock again (maintainers)
	uv=$(UV); $$uv pip compile pyproject.toml --extra suite --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock

test: $(READY) ## Run the tests
	@$(PY) -m pytest -n 2 --dist loadfile $(PYTEST)

test-oldest: $(READY) ## Run them with the oldest versions that pyproject.toml allows, in an environment of their own
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@uv=$(UV); $$uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -r pyproject.toml --extra suite --extra dev
	@# the page's pictures are those of the locked versions, to the byte
	@$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --deselect tests/test_page.py::test_the_report_is_not_stale $(PYTEST)

lint: $(READY) ## Check style (ruff) and types (mypy)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet . || { echo "run: $(VENV)/bin/ruff format ."; exit 1; }
	@$(VENV)/bin/mypy

readme: $(READY) ## Rewrite what README and docs say of results: scoreboard, findings, speeds
	@$(PY) -m scripts.readme

gpu-check: $(READY) ## In ten minutes: does everything work on this machine's GPU? (without one: what can be known)
	@$(PY) -m scripts.gpu_check

bench: $(READY) ## Time the recurrent layers against their peers
	@$(PY) -m scripts.bench $(BENCH)

bench-train: $(READY) ## Time the training loop against a bare PyTorch loop
	@$(PY) -m scripts.bench_train

profile-%: $(READY) ## Show where the time of a training step goes at the paper's sizes (DEVICE= OVERRIDES=)
	@$(PY) -m scripts.profile_step "$$GROUP" $(overrides) $(results)

torture: $(READY) ## Kill, stop, starve and damage runs in all ways we know (some ten minutes)
	@$(PY) -m tests.torture

clean: ## Remove the environment and caches; results stay
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache

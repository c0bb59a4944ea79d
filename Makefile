SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON_IN := .venv/bin/python
# The services see to it themselves; this is for benchmarks and tests that use ONNX Runtime directly.
export ORT_DISABLE_TELEMETRY ?= 1
comma := ,
# A package index may lie behind a proxy; what runs on this machine does not.
export NO_PROXY := $(addsuffix $(comma),$(or $(no_proxy),$(NO_PROXY)))localhost,127.0.0.1
export no_proxy := $(NO_PROXY)

# Which patterns `up` and `demo` start, `bench` measures, `prove` breaks and `test-compose` tests.
PATTERNS ?= 02 03 04 06 07
# Which folders `test` tests, the slowest first: as many at once as there are cores.
FOLDERS ?= $(wildcard 0*_pattern) models scripts common
# `common` stands for every package in it.
folders = $(foreach folder,$(FOLDERS),$(if $(filter common,$(folder)),$(patsubst %/pyproject.toml,%,$(wildcard common/*/pyproject.toml)),$(folder)))

# 03 asks 02's model server.
pattern_folders = $(sort $(foreach number,$(PATTERNS) $(if $(filter 03,$(PATTERNS)),02),$(wildcard $(number)_*)))

.PHONY: help setup demo up test test-compose smoke prove trace lint format models bench lock clean

help:  ## Print what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22
	@echo '  PATTERNS="06" chooses patterns for up, demo, smoke, bench, prove and test-compose; FOLDERS="common" folders for test'

demo:  ## Start the patterns as local processes, show real requests and answers, stop
	@scripts/setup.sh run $(pattern_folders)
	@$(PYTHON_IN) -m scripts.devstack.demo $(PATTERNS)

up:  ## Run the patterns as local processes until Ctrl-C
	@scripts/setup.sh run $(pattern_folders)
	@$(PYTHON_IN) -m scripts.devstack.up $(PATTERNS)

test: setup  ## Run all tests that need no Docker, with coverage
	@scripts/test.sh $(folders)

test-compose: setup  ## Build the images, run the end-to-end tests against docker compose, remove all of it
	@scripts/test_compose.sh $(PATTERNS)

smoke: setup  ## Run every curl line of every README, against what runs or a stack of its own, and compare the answers
	@$(PYTHON_IN) -m scripts.checks.smoke $(if $(AS_SHOWN),--as-shown) $(PATTERNS)

prove: setup  ## Kill, hang and feed garbage to the patterns under load, and keep the ledger; PROVE=long for more
	@$(PYTHON_IN) -m scripts.chaos --form $(or $(PROVE),short) $(if $(SAMPLE),--output $(SAMPLE)) $(PATTERNS)

chaos: setup  ## Kill workers, models and Redis under 2,000 jobs of 03 and of 07, and draw 200,000 ids
	@cd 03_asynchronous_pattern && CHAOS_JOBS=2000 CHAOS_KILLS=30 CHAOS_TF_SERVING_AWAY_S=5 \
		../$(PYTHON_IN) -m pytest tests/e2e/test_faults.py -s
	@cd 07_sync_async_pattern && FAULT_IMAGES=2000 FAULT_KILLS=60 \
		../$(PYTHON_IN) -m pytest tests/integration/worker/test_faults.py -s -k whoever
	@cd common && CHAOS_IDS=200000 ../$(PYTHON_IN) -m pytest tests/test_queue.py -k share_an_id

trace: setup  ## Follow every requirement to the test that shows it, and that test to the last `make test`
	@$(PYTHON_IN) -m scripts.checks.traceability

lint: setup  ## ruff, black --check, mypy, and pip-audit where its data can be reached
	@scripts/lint.sh

format: setup  ## Let ruff and black change what they can
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/black --quiet .

bench: setup  ## Measure the patterns beside their floors, rivals and each other; tables and plots; BENCH=long for longer
	@$(PYTHON_IN) -m scripts.benchmarks.report --form $(or $(BENCH),short) $(if $(SAMPLE),--output $(SAMPLE)) $(PATTERNS)

models: setup  ## Build all models into models/artifacts
	@$(PYTHON_IN) -m models.build

setup:  ## Create or update .venv with everything that development needs
	@scripts/setup.sh dev

lock: setup  ## Choose the versions in constraints.txt anew
	@scripts/lock.sh

clean:  ## Remove what runs and builds have left: state, logs, models, caches; .venv stays
	@rm -rf .run bench-results prove-results models/artifacts htmlcov .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

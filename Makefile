SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON_IN := .venv/bin/python
# The services see to it themselves; this is for benchmarks and tests that use ONNX Runtime directly.
export ORT_DISABLE_TELEMETRY ?= 1
comma := ,
# A package index may lie behind a proxy; what runs on this machine does not.
export NO_PROXY := $(addsuffix $(comma),$(or $(no_proxy),$(NO_PROXY)))localhost,127.0.0.1
export no_proxy := $(NO_PROXY)
# An arbitrary user, as OpenShift assigns, has no home to keep a cache in.
ifneq ($(shell [ -w "$$HOME" ] && echo yes),yes)
export UV_CACHE_DIR ?= $(CURDIR)/.tools/cache
endif
# Many containers set it. Without bytecode, every process that a test starts compiles its packages anew: 20 s for TensorFlow.
unexport PYTHONDONTWRITEBYTECODE

all_patterns := $(sort $(wildcard [0-9][0-9]_*_pattern))
# Which patterns `up` and `demo` start, `bench` measures, `prove` breaks and `test-compose` tests.
PATTERNS ?= $(foreach folder,$(all_patterns),$(firstword $(subst _, ,$(folder))))
# Which folders `test` tests.
FOLDERS ?= $(all_patterns) models scripts deploy common
# `common` stands for every package in it.
folders := $(foreach folder,$(FOLDERS:/=),$(if $(filter common,$(folder)),$(patsubst %/pyproject.toml,%,$(wildcard common/*/pyproject.toml)),$(folder)))

# Every target checks its words here. FOLDERS=06 is short for the folder of the pattern 06.
numbers := $(foreach folder,$(all_patterns),$(firstword $(subst _, ,$(folder))))
unknown := $(filter-out $(numbers),$(PATTERNS))
$(if $(unknown),$(error PATTERNS: no pattern "$(unknown)"; write for instance PATTERNS="04 06", of $(numbers)))
folders := $(foreach folder,$(folders),$(if $(filter $(numbers),$(folder)),$(wildcard $(folder)_*_pattern),$(folder)))
unknown := $(foreach folder,$(folders),$(if $(wildcard $(folder)/.),,$(folder)))
$(if $(strip $(unknown)),$(error FOLDERS: no folder "$(strip $(unknown))"; write for instance FOLDERS="06 common"))

# 03 calls 02's model server.
pattern_folders = $(sort $(foreach number,$(PATTERNS) $(if $(filter 03,$(PATTERNS)),02),$(wildcard $(number)_*)))

.PHONY: help setup demo up test test-clients test-wheel test-compose test-kubernetes test-swarm smoke prove trace lint format models bench bench-peers eject lock clean

help:  ## Print what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22
	@echo '  PATTERNS="06" chooses patterns for up, demo, smoke, bench, prove, test-compose and test-swarm; FOLDERS="common" folders for test'

demo:  ## Start the patterns as local processes, show real requests and responses, stop; MODEL=churn shows a model of your own
	@scripts/setup.sh run $(pattern_folders)
	@$(PYTHON_IN) -m scripts.devstack.demo $(if $(MODEL),--model '$(MODEL)') $(PATTERNS)

up:  ## Run the patterns as local processes until Ctrl-C; RELOAD=1 restarts what you edit, METRICS=1 adds Prometheus, TRACES=1 keeps spans, MODEL=churn serves your own
	@scripts/setup.sh run $(pattern_folders)
	@$(PYTHON_IN) -m scripts.devstack.up $(if $(RELOAD),--reload) $(if $(METRICS),--metrics) $(if $(TRACES),--traces) $(if $(MODEL),--model '$(MODEL)') $(PATTERNS)

test: setup  ## Run all tests that need no Docker, with coverage
	@scripts/test.sh $(folders)

test-clients: setup  ## Real clients of other projects against the model server on both runtimes; WRITE=1 writes the table into PROTOCOLS.md
	@$(PYTHON_IN) -m models.build --only iris_saved_model
	@cd common/model_server && ../../$(PYTHON_IN) -m tests.clients $(if $(WRITE),--write)

test-wheel: setup  ## Install the model server's wheels into an empty environment, ask it, and validate KServe's manifest
	@$(PYTHON_IN) -m models.build --only iris_saved_model
	@cd common/model_server && ../../$(PYTHON_IN) -m tests.install

test-compose: setup  ## Build the images, run the end-to-end tests against docker compose, remove all of it
	@SAMPLE=$(SAMPLE) scripts/test_compose.sh $(PATTERNS)
	@$(if $(SAMPLE),$(PYTHON_IN) -m scripts.checks.figures --write)

test-kubernetes: setup  ## Render and check the Kubernetes manifests, without a cluster
	@scripts/test_kubernetes.sh

test-swarm: setup  ## Deploy the patterns to a Docker Swarm and scale, roll, kill and drain under load; SAMPLE=docs/prove keeps the table
	@$(PYTHON_IN) -m deploy.swarm $(if $(SAMPLE),--output $(SAMPLE)) $(PATTERNS)
	@$(if $(SAMPLE),$(PYTHON_IN) -m scripts.checks.figures --write)

smoke: setup  ## Run every curl line of every README, against what runs or a stack of its own, and compare the responses
	@$(PYTHON_IN) -m scripts.checks.smoke $(if $(AS_SHOWN),--as-shown) $(PATTERNS)

# The figures in the READMEs name numbers of rows and jobs that only the long runs have.
usual := $(if $(SAMPLE),long,short)

# Programs of their own, by the first word of PROVE; PROVE="drain long" has two.
prove_alerts = deploy.observability.alerting --profile $(or $(word 2,$(PROVE)),$(usual)) $(PATTERNS)
prove_keda := scripts.chaos.autoscaling
prove_models := scripts.checks.own_models
prove_upgrades := deploy.eject.history
prove_drain = scripts.chaos.draining --profile $(or $(word 2,$(PROVE)),$(usual))

prove: setup  ## Chaos: kill, hang and feed garbage to the patterns under load, and write the loss report; PROVE=long for more, PROVE=alerts shows which alerts fire, PROVE=keda scales workers, PROVE=drain stops services, PROVE=models adds and serves twelve, PROVE=upgrades upgrades an ejected 03
	@$(PYTHON_IN) -m $(or $(prove_$(firstword $(PROVE))),scripts.chaos --profile $(or $(PROVE),$(usual)) $(PATTERNS)) $(if $(SAMPLE),--output $(SAMPLE))
	@$(if $(SAMPLE),$(PYTHON_IN) -m scripts.checks.figures --write)

trace: setup  ## Follow every requirement to the test that shows it, and that test to the last `make test`
	@$(PYTHON_IN) -m scripts.checks.traceability

lint: setup  ## ruff, black --check, mypy for both ends of the supported Pythons, actionlint, and pip-audit where its data can be reached
	@scripts/lint.sh

format: setup  ## Let ruff and black change what they can
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/black --quiet .

# A program of its own; BENCH="growth quick" has two words.
bench_growth = scripts.benchmarks.growth --profile $(or $(word 2,$(BENCH)),short)

bench: setup  ## Measure the patterns beside their baselines and alternatives; tables and plots; BENCH=long for longer, BENCH=growth for how cost grows
	@$(PYTHON_IN) -m $(or $(bench_$(firstword $(BENCH))),scripts.benchmarks --profile $(or $(BENCH),$(usual))) $(if $(SAMPLE),--output $(SAMPLE)) $(PATTERNS)
	@$(if $(SAMPLE),$(PYTHON_IN) -m scripts.checks.figures --write)

bench-peers: setup  ## 04's job beside pandas, Dask, Ray Data and PySpark, 03 beside Celery, RQ, arq, taskiq and dramatiq; BENCH=quick tries it, SAMPLE=docs/bench keeps the tables
	@$(PYTHON_IN) -m scripts.benchmarks.peers --profile $(or $(BENCH),$(usual)) $(if $(SAMPLE),--output $(SAMPLE)) $(filter 03 04,$(PATTERNS))

eject:  ## Write one pattern as a repository of its own: PATTERN=03 TO=../churn-service; MODEL=churn takes your own model along
	@scripts/setup.sh run $(or $(wildcard $(PATTERN)_*),$(error PATTERN: which pattern? make eject PATTERN=03 TO=../churn-service))
	@$(PYTHON_IN) -m deploy.eject.eject $(if $(MODEL),--model '$(MODEL)') $(PATTERN) '$(or $(TO),$(error TO: into which folder? make eject PATTERN=03 TO=../churn-service))'

models: setup  ## Build all models into models/artifacts
	@$(PYTHON_IN) -m models.build

setup:  ## Create or update .venv with everything that development needs
	@scripts/setup.sh dev

lock: setup  ## Choose the versions in constraints.txt anew
	@scripts/lock.sh

clean:  ## Remove what runs and builds have left: state, logs, models, caches; .venv stays
	@rm -rf .run bench-results prove-results models/artifacts htmlcov .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

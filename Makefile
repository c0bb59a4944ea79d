SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON_IN := .venv/bin/python
PATTERNS ?= 06

.PHONY: help
help:  ## Print what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup:  ## Create or update .venv with everything that development needs
	@scripts/setup.sh dev

.PHONY: lock
lock:  ## Regenerate constraints.txt from the pyproject.toml files
	@scripts/lock.sh

# Commands for people and for CI. `make` alone lists them; each one sets up what it needs.

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || echo python3)
TESTS  ?= tests integration
SGLANG ?= 0.5.23

bin     := $(VENV)/bin
engine  := $(VENV)/.kvtier-engine
project := $(VENV)/.kvtier-project
sglang  := $(VENV)-sglang-$(SGLANG)
# Tests with an engine take minutes; the traceback of a hang comes before their own timeout, not in the middle of them.
pytest  := $(bin)/python -m pytest -o faulthandler_timeout=590

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check fmt fmt-check lint types layers torture soak fuzz bench kv-sample e2e sglang-setup e2e-sglang docs \
        docs-check clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(project) ## virtual environment in .venv: vLLM for CPU, kvtier, development tools (VENV=DIR PYTHON=python3.11)

$(engine): tools/setup.sh
	@tools/setup.sh engine $(VENV) $(PYTHON)
	@touch $@

$(project): pyproject.toml setup.py $(wildcard kvtier/codec/*.[ch]) $(engine)
	@tools/setup.sh project $(VENV)
	@touch $@

demo: setup ## the whole story on one screen: a real vLLM, four acts, a table; about 6 minutes the first time
	@$(bin)/python tools/make_model.py
	@$(bin)/python -m integration.demo

test: setup ## all tests, those with a real engine included (TESTS=tests leaves those out)
	$(pytest) $(TESTS)

check: fmt-check lint types layers docs-check test ## everything CI runs

fmt: setup ## format the code
	$(bin)/ruff check --quiet --select I --fix .
	$(bin)/ruff format .

fmt-check: setup
	$(bin)/ruff format --check .

lint: setup ## ruff with the rules in pyproject.toml
	$(bin)/ruff check .

types: setup ## mypy --strict
	$(bin)/mypy

layers: setup ## import contracts, and no file over 500 lines
	$(bin)/lint-imports --no-logo
	@git ls-files '*.py' | xargs wc -l | awk '$$2 != "total" && $$1 > 500 { print $$2 ": " $$1 " lines, at most 500"; bad = 1 } END { exit bad }'

torture: setup ## every kind of fault against the real cache, some minutes, and a table of what happened (ARGS="--seed 1 --json")
	@$(bin)/python -m tests.torture $(ARGS)

fuzz: setup ## coverage-guided fuzzing of frames, YAML, traces and prompts, a minute each (ARGS="frame 600")
	@test -d $(VENV)/.kvtier-fuzz || $(bin)/python -m pip install -q --no-deps --target $(VENV)/.kvtier-fuzz atheris==3.0.0
	@PYTHONPATH=.:$(VENV)/.kvtier-fuzz $(bin)/python -m tests.fuzz $(ARGS)

soak: setup ## mixed traffic with all of these faults at random, 30 minutes (ARGS="--minutes 5 --seed 1")
	@$(bin)/python -m tests.torture.soak $(ARGS)

bench: setup ## measure codec, disk and index on this machine, quickly (kvtier bench all, without --quick, takes minutes)
	@mkdir -p .cache
	$(bin)/kvtier bench all --quick --dir .cache

kv-sample: setup ## real KV of the demo model in .cache/kv-sample, for kvtier bench; about a minute
	@$(bin)/python -m integration.kv_sample

e2e: setup ## the tests with a real engine
	$(pytest) integration

sglang-setup: setup ## SGLang for a CPU beside .venv, for the tests with it (SGLANG=0.5.21 for another version)
	@tools/setup.sh sglang $(sglang) $(VENV) $(SGLANG)

e2e-sglang: sglang-setup ## the tests with a real SGLang; about 10 minutes
	$(sglang)/bin/python -m pytest -o faulthandler_timeout=590 -W default --timeout 900 integration/sglang

docs: setup ## renew the generated parts of the documentation and check its links
	$(bin)/python tools/config_table.py
	$(bin)/python tools/check_links.py

docs-check: setup
	$(bin)/python tools/config_table.py --check README.md
	$(bin)/python tools/check_links.py

clean: ## remove caches and what the demo left, not .venv and not the model
	rm -rf .kvtier-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage build dist

# The few verbs of this repository; `make help` lists them. Everything missing is installed by scripts/setup.

# Which cargo to use is the set-up's finding; these two verbs need none.
ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)
-include .cache/setup.mk
endif
CARGO ?= cargo
PYTHON := .cache/venv/bin/python
TARGET := $(or $(CARGO_TARGET_DIR),target)
EVOKE := $(TARGET)/debug/evoke
# Starting a server needs root; nothing else does.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.DEFAULT_GOAL := help
.PHONY: help demo build test check unit e2e test-v2 bench clean setup-build setup-test

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: build ## build, then search hyperparameters for handwritten digits in containers (PNG, table of scores)
	@$(EVOKE) status >/dev/null 2>&1 || $(SUDO) $(EVOKE) up --detach
	$(EVOKE) run examples/digits_search.py

build: setup-build ## build target/debug/evoke, the whole thing in one binary
	$(CARGO) build -p evoke-cli

test: check unit e2e ## every check and test: unit, property, simulation, contract, end to end

check: setup-test ## format, lints, house rules, layers
	scripts/check $(CARGO)

unit: setup-test ## Rust tests of the whole workspace
	$(CARGO) test --workspace

e2e: setup-test ## end-to-end tests with the official client against real containers (needs root)
	$(CARGO) build -p evoke-cli
	$(CARGO) xtask coverage $(EVOKE)
	@if ls tests/e2e/test_*.py >/dev/null 2>&1; then \
	  $(SUDO) env EVOKE_BIN=$(abspath $(EVOKE)) $(PYTHON) -m pytest tests/e2e -q; \
	else echo "end-to-end tests: NONE WRITTEN YET"; fi

test-v2: build setup-test ## the same binary on Debian 12's kernel with control groups v2 alone, in a virtual machine
	$(SUDO) scripts/test-v2 $(EVOKE) $(abspath $(PYTHON))

bench: setup-test ## benchmarks, each a ratio against a baseline in the same run; also as .cache/bench.json and .svg
	$(CARGO) build -p evoke-cli -p evoke-baseline --release
	$(SUDO) env EVOKE_BIN=$(abspath $(TARGET)/release/evoke) $(PYTHON) benches/run.py \
		--json .cache/bench.json --svg .cache/bench.svg

clean: ## remove what was built and the test environment (not the data folder)
	rm -rf target .cache

setup-build:
	@scripts/setup build

setup-test:
	@scripts/setup test

# Made before anything else where it is not there yet; make then starts over and reads it.
.cache/setup.mk:
	@scripts/setup build

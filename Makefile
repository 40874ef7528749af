# Every target sets up what it needs. ARGS are passed on: make demo ARGS=--once, make test ARGS="-k schedule".
SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
SETUP := pyproject.toml constraints.txt tools/venv

.DEFAULT_GOAL := help
.PHONY: help demo test check soak bench docs format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## the tour: a web site, a worker, a mail server that fails (ARGS=--once plays it by itself)
	@$(BIN)/offload demo $(ARGS)

test: $(READY)  ## all tests on one Python, those without processes on the newest one found
	@tools/test $(ARGS)

check: $(READY)  ## format, lint, types, import directions, sizes, docs
	@tools/check

soak: $(READY)  ## the tests of the guarantees at full counts (long)
	@tools/soak $(ARGS)

bench: $(READY)  ## throughput, latency, memory and start-up, beside a bare loop on the same engine
	@$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(READY)  ## write the generated tables, check links and examples
	@$(BIN)/python tools/docs.py

format: $(READY)  ## format the code and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet || true
	@$(BIN)/ruff format

clean:  ## remove what the other targets made
	rm -rf .venv .venv-3.* .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist

$(READY): $(SETUP)
	@tools/venv .venv $(PYTHON)

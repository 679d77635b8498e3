# `make help` lists what there is. A fresh machine needs `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests that need a CUDA device, or Chromium, are left out by name where there is none, so that a skip is always a
# failure.
NO_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 || echo 'not gpu')
NO_BROWSER := $(shell for name in "$$NVP_CHROMIUM" chromium google-chrome; do \
	command -v "$$name" >/dev/null && exit; done; echo 'not browser')
# Test processes; a file's tests stay in one. One thread each (tests/conftest.py): processes of two would wait for each
# other. One more process than cores works while others wait for servers and for processes of their own.
WORKERS ?= 3
MARKS ?= $(if $(and $(NO_GPU),$(NO_BROWSER)),$(NO_GPU) and $(NO_BROWSER),$(NO_GPU)$(NO_BROWSER))

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lint types layers docs bench soak pins clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  %-8s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	touch $@

setup: $(STAMP)  ## make .venv with everything that works on a CPU

demo: $(STAMP)  ## ingest real footage, question it with SQL, write demo/report.html
	$(BIN)/python -m benchmarks.demo

test: $(STAMP)  ## run the test suite; a skipped test is a failure
	NVP_FORBID_SKIPS=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder -m "$(MARKS)"

check: $(STAMP) format lint types layers docs test  ## format, lint, types, import layers, docs and tests: what CI runs

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python -m nvpstore.api.docs --check docs/cli.md

bench: $(STAMP) demo  ## run a part of the benchmarks, write benchmarks/results/report.html of all results
	$(BIN)/python -m benchmarks.evidence --subset

soak: $(STAMP)  ## try for half an hour to break the store, then the property tests with many more examples
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak all --s3
	NVP_FORBID_SKIPS=1 $(BIN)/python -m pytest -m "$(MARKS)" --hypothesis-profile=soak

pins: $(STAMP)
	head -2 constraints.txt > $(VENV)/pins
	$(BIN)/python -m pip freeze --all --exclude nvpstore --exclude pip | sed 's/+cpu//' >> $(VENV)/pins
	cp $(VENV)/pins constraints.txt

clean:  ## remove .venv, caches, builds and the demo's output
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two commands: `make demo` and `make test`. Both create .venv when it is missing or stale.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
# 3.11 first: there torch installs as a small CPU build. A name on PATH may be a shim that
# fails when called, so every candidate is run.
CANDIDATES := python3.11 python3.12 python3.13 python3 python
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz lint format experiments bench bench-full docs clean

help:
	@echo "make demo         fit the wind model, print its report, write runs/wind/"
	@echo "make test         run the test suite"
	@echo "make fuzz         5,000 random inputs, others every time (half an hour or more)"
	@echo "make lint         ruff and mypy"
	@echo "make experiments  rerun every experiment and rewrite experiments/results/"
	@echo "make bench        models from data against other libraries, short (under 15 minutes)"
	@echo "make bench-full   the same, every problem and three seeds"
	@echo "make docs         build the documentation into site/, its notebooks run (minutes)"
	@echo "make clean        remove .venv, runs/, site/ and caches"

demo: $(STAMP)
	$(BIN)/python -m experiments.demo --out runs/wind

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

# SEED=... repeats a run, FUZZ=... sets how many inputs a property of weight 1 gets.
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
fuzz: $(STAMP)
	@echo "make fuzz SEED=$(SEED) repeats this"
	FUZZ=$(or $(FUZZ),65) $(BIN)/python -m pytest tests/test_fuzz_*.py -n auto \
	  --hypothesis-profile=long --hypothesis-seed=$(SEED)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

experiments: $(STAMP)
	@set -e; for file in $$(grep -l __main__ experiments/[a-z]*.py | grep -v demo.py); do \
	  echo "== $$file"; $(BIN)/python -m experiments.$$(basename $$file .py); done

bench: $(PEERS)
	$(BIN)/python -m experiments.benchmark.run

bench-full: $(PEERS)
	$(BIN)/python -m experiments.benchmark.run --full

# Other libraries to compare with; without them their rows would say "not installed".
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet -e ".[bench]" -c constraints.txt
	@touch $(PEERS)

docs: $(STAMP)
	EXECUTE_NOTEBOOKS=true $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -c "$(USABLE)" >/dev/null 2>&1; then \
	  python=""; \
	  for name in $(PYTHON) $(CANDIDATES); do \
	    if $$name -c "$(USABLE)" >/dev/null 2>&1; then python=$$name; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "ebm_pp needs Python 3.11, 3.12 or 3.13 with venv; tried: $(PYTHON) $(CANDIDATES)." >&2; \
	    echo "Install one (Debian: python3-venv too), or name it: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$($$python --version)"; \
	  rm -rf $(VENV); $$python -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -e ".[test]" -c constraints.txt
	@touch $(STAMP)

clean:
	rm -rf $(VENV) runs site build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

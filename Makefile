# Everything a fresh machine needs: Python 3.11, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint bench clean

demo: $(INSTALLED)  ## Tune the bundled chat model and show the effect on attacks it was not tuned on.
	rm -rf demo-out
	$(BIN)/neurontune tune examples/demo_model/model --output demo-out

test: $(INSTALLED)  ## Run the test suite.
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## Run every benchmark and print its table.
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info

# torch goes first and alone: the pinned CPU build, before another package asks for any build.
$(INSTALLED): pyproject.toml setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

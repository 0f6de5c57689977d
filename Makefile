# Everything a fresh machine needs: Python 3.11, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

BENCHMARKS := overhead attribution methods meta trigger controls evaluation

.PHONY: demo test lint bench peft-suite clean

demo: $(RUNTIME)  ## Tune the bundled chat model and show the effect on attacks it was not tuned on.
	rm -rf demo-out
	$(BIN)/neurontune tune examples/demo_model/model --counts safety=0.1 --output demo-out

test: $(DEVELOPMENT)  ## Run the test suite.
	$(BIN)/python -m pytest --numprocesses auto

lint: $(DEVELOPMENT)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEVELOPMENT)  ## Run every benchmark and print its table.
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(QUICK) || exit 1; done

peft-suite: $(DEVELOPMENT)  ## Run PEFT's own tests for NEURONTUNE and IA3, side by side (about 10 minutes).
	$(BIN)/python benchmarks/peft_suite.py --output docs/peft_suite.md

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info

# torch goes first and alone: the pinned CPU build, before another package asks for any build.
$(RUNTIME): pyproject.toml setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(DEVELOPMENT): $(RUNTIME)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

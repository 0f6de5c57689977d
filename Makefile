# Everything a fresh machine needs: Python 3.11, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development
RELEASE := $(VENV)/.release
LLAMA := $(VENV)/.llama

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# `make test COVERAGE=--cov` measures branch coverage too, and fails below what pyproject.toml asks for.
COVERAGE ?=
BENCHMARKS := startup overhead attribution methods meta trigger same_pass unseen controls judges evaluation export

.PHONY: demo test llama lint bench docs dist peft-suite clean

demo: $(RUNTIME)  ## Tune the bundled chat model and show the effect on attacks it was not tuned on.
	rm -rf demo-out
	$(BIN)/neurontune tune examples/demo_model/model --counts safety=0.1 --output demo-out

test: $(DEVELOPMENT)  ## Run the test suite.
	$(BIN)/python -m pytest --numprocesses auto $(COVERAGE)

llama: $(LLAMA)  ## Build llama.cpp for the tests of GGUF exports (a C++ compiler; about 4 minutes on two cores).

lint: $(DEVELOPMENT)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEVELOPMENT)  ## Run every benchmark and print its table.
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(QUICK) || exit 1; done

peft-suite: $(DEVELOPMENT)  ## Run PEFT's own tests for NEURONTUNE and IA3, side by side (about 10 minutes).
	$(BIN)/python benchmarks/peft_suite.py --output docs/peft_suite.md

docs: $(RELEASE)  ## Build the documentation site in site/; a warning is an error, and nothing is fetched.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(RELEASE)  ## Build sdist and wheel, check them, and run the wheel in an environment of its own.
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/clean
	build/clean/bin/pip install --quiet --constraint constraints.txt torch
	build/clean/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && clean/bin/neurontune --version && clean/bin/neurontune sites ../examples/demo_model/model
	cd build && clean/bin/python -c "import neurontune_peft, peft; print(peft.PeftType.NEURONTUNE.value)"

clean:
	rm -rf $(VENV) demo-out build dist site *.egg-info

# torch goes first and alone: the pinned CPU build, before another package asks for any build.
$(RUNTIME): pyproject.toml setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(RELEASE): $(RUNTIME)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs,release]"
	touch $@

$(DEVELOPMENT): $(RUNTIME)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# Built from source for any x86-64 or ARM processor, without what only pictures or several threads need.
$(LLAMA): $(DEVELOPMENT)
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF" \
		$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[llama]"
	touch $@

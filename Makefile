# Everything runs in .venv; the first call of a target makes it, later calls find it by its stamp file.
# Needs make and Python >= 3.10. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
TRACKERS := .venv-loggers
BUILT_ON := .venv-compat
GUIDES := .venv-guides
DEEPSPEED := .venv-deepspeed
RAY := .venv-ray
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# compiled modules are kept: tests start hundreds of processes, each of which would compile torch again
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-slurm test-loggers test-deepspeed test-compat test-ray torture format lint types layers docs bench clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

# ---- environment
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "fulmen needs Python >= 3.10; say which one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# An environment of its own, for what is too large for that of the other tests: $(call new_venv,FOLDER,WHAT IS INSTALLED)
define new_venv
$(PYTHON) -m venv $(1)
@echo "$(2)"
@$(1)/bin/python -m pip --disable-pip-version-check install -q 'torch==2.13.0+cpu' 2>/dev/null \
	|| $(1)/bin/python -m pip --disable-pip-version-check install -q 'torch>=2.8'
endef

# Without a GPU a CPU build of torch does, if an index that pip knows has one: the default build on Linux brings
# gigabytes of CUDA libraries.
$(VENV)/.torch: | $(BIN)/python
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then \
		:; \
	elif nvidia-smi >/dev/null 2>&1; then \
		echo "installing torch"; $(PIP) install -q 'torch>=2.8'; \
	elif $(PIP) install -q 'torch==2.13.0+cpu' >/dev/null 2>&1; then \
		echo "installed a CPU build of torch"; \
	else \
		echo "installing torch; no GPU here: setting PIP_EXTRA_INDEX_URL to an index of CPU wheels saves gigabytes"; \
		$(PIP) install -q 'torch>=2.8'; \
	fi
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "installing fulmen and what the demo needs"
	@$(PIP) install -q -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "installing fulmen and the development tools"
	@$(PIP) install -q -e '.[all,demo,dev,docs]'
	@touch $@ $(VENV)/.demo

# DeepSpeed looks for compilers and hardware when it is imported; without it, its strategy is tested as far as it goes.
$(DEEPSPEED)/.ready: pyproject.toml
	$(call new_venv,$(DEEPSPEED),installing fulmen and DeepSpeed)
	@$(DEEPSPEED)/bin/python -m pip --disable-pip-version-check install -q -e '.[all,deepspeed]' \
		hypothesis pytest pytest-timeout pytest-xdist
	@touch $@

# The trackers bring hundreds of megabytes, so they stay out of the other tests' environment.
$(TRACKERS)/.ready: tests/loggers/requirements.txt pyproject.toml
	$(call new_venv,$(TRACKERS),installing fulmen and the packages of the trackers)
	@$(TRACKERS)/bin/python -m pip --disable-pip-version-check install -q -e '.[all,demo]' -r tests/loggers/requirements.txt
	@touch $@

# The packages built on Lightning, and Lightning itself to compare with.
$(BUILT_ON)/.ready: tests/compat/packages/requirements.txt tests/compat/packages/without_their_pins.txt pyproject.toml
	$(call new_venv,$(BUILT_ON),installing fulmen with Lightning and packages built on it)
	@$(BUILT_ON)/bin/python -c 'import torch; print("torch==" + torch.__version__)' > $(BUILT_ON)/constraints.txt
	@$(BUILT_ON)/bin/python -m pip --disable-pip-version-check install -q -c $(BUILT_ON)/constraints.txt -e '.' -r $<
	@$(BUILT_ON)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r $(word 2,$^) 2>/dev/null
	@touch $@

# Ray starts a dozen processes of its own, so its tests have an environment, and a target, of their own.
$(RAY)/.ready: pyproject.toml
	$(call new_venv,$(RAY),installing fulmen and Ray)
	@$(RAY)/bin/python -m pip --disable-pip-version-check install -q -e '.[all,ray]' \
		hypothesis pytest pytest-timeout pytest-xdist
	@touch $@

# What the migration guides come from.
$(GUIDES)/.ready: tests/docs/requirements.txt pyproject.toml
	$(call new_venv,$(GUIDES),installing fulmen with Lightning and transformers and accelerate)
	@$(GUIDES)/bin/python -c 'import torch; print("torch==" + torch.__version__)' > $(GUIDES)/constraints.txt
	@$(GUIDES)/bin/python -m pip --disable-pip-version-check install -q -c $(GUIDES)/constraints.txt -e '.' -r $<
	@touch $@

# ---- use
demo: $(VENV)/.demo ## Train a small CNN on handwritten digits, under a minute on a CPU
	$(BIN)/python examples/digits.py $(ARGS)

# ---- checks
test: $(VENV)/.dev ## Run the fast tests
	$(BIN)/python -m pytest -n 2 -m 'not slow and not slurm' $(ARGS)

test-all: $(VENV)/.dev ## Run all tests, slow ones too
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slurm: $(VENV)/.dev ## Run the tests on a real Slurm, started for them (as root)
	bash tests/clusters/slurm.sh run $(BIN)/python -m pytest -m slurm $(ARGS)

test-loggers: $(TRACKERS)/.ready ## Run the tests of all loggers, with the packages of the trackers, in a venv of their own
	$(TRACKERS)/bin/python -m pytest -n 2 tests/loggers $(ARGS)

test-deepspeed: $(DEEPSPEED)/.ready ## Run the tests of DeepSpeed, with the package, in a venv of their own
	$(DEEPSPEED)/bin/python -m pytest tests/strategies/test_deepspeed.py $(ARGS)

test-compat: $(BUILT_ON)/.ready ## Train published packages with Lightning and with fulmen, compare losses, in a venv of their own
	$(BUILT_ON)/bin/python tests/compat/packages/run.py $(ARGS)

test-ray: $(RAY)/.ready ## Run the tests of Ray Train, with Ray, in a venv of their own
	$(RAY)/bin/python -m pytest -m '' -n 0 tests/plugins/environments/test_ray.py $(ARGS)

test-guides: $(GUIDES)/.ready ## Run the programs of the migration guides, before and after, in a venv of their own
	$(GUIDES)/bin/python -m pytest -m '' tests/docs/test_guides.py $(ARGS)

torture: $(VENV)/.dev ## Interrupt runs at random, resume them, compare (ARGS="--runs 500", "--what saving", "--help")
	$(BIN)/python -m tests.torture $(ARGS)

format: $(VENV)/.dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

layers: $(VENV)/.dev ## Check that imports go down the layers only
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev ## Measure the overhead of a training step against the plain loop
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove everything that can be made again
	rm -rf $(VENV) $(TRACKERS) $(BUILT_ON) $(DEEPSPEED) $(RAY) site build dist htmlcov demo_output .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything a user or a contributor runs. `make` alone lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
INSTALL := $(BIN)/python tools/install.py
ARGS   ?=
# Test files run beside each other in so many processes; 0: all in one, for a debugger.
WORKERS ?= 2
# Whose bits may not depend on company.
BITS := $(addprefix tests/,kernels/test_row_invariance.py kernels/test_conv3x3.py \
  engine/llm/test_batch_invariance.py engine/models/fallback/test_family.py \
  $(addprefix engine/diffusion/families/,test_batch_invariance.py test_rows_by_module.py))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help serve test test-fast rungs clients wheel check format kernels-compile mutants bench-kernels bench loadtest soak chaos fuzz size growth clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.serve  ## Install, fetch the default model and serve it (ARGS="--model … --port …")
	@$(BIN)/tandem serve $(ARGS)

test: $(VENV)/.dev  ## Install what the tests need and run all of them
	$(PYTEST) $(ARGS)

rungs: $(VENV)/.dev  ## The tests of bits in company, once for each instruction set that this processor has
	@for rung in $$($(BIN)/python -c \
	  "from kernels import isa; print(*(name for name in isa.RUNGS if not isa.missing(name)))"); do \
	  echo "== $$rung"; ALL_CASES=1 TANDEM_CPU_ISA=$$rung $(PYTEST) $(BITS) $(ARGS) || exit 1; \
	done

clients: $(VENV)/.clients  ## Run each client of docs/clients.md, newly installed, against the default model
	$(BIN)/python -m pytest tests/clients --clients $(ARGS)

test-fast: $(VENV)/.dev  ## The tests that need no server and no model, about two minutes
	$(PYTEST) -m "not slow and not e2e" $(ARGS)

wheel: $(VENV)/.ship  ## Make a release in dist/: sdist, wheels with compiled operations, components, checksums; try it
	$(BIN)/python -m tools.wheel

check: $(VENV)/.dev  ## Format, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

loadtest: $(VENV)/.dev  ## Drive a running server (ARGS="run --scenario closed --concurrency 16")
	$(BIN)/python -m loadtest $(or $(ARGS),run --scenario closed)

soak: $(VENV)/.dev  ## Mixed traffic for a long time: equal bits, no growth (ARGS="--hours 1 --seed 5")
	$(BIN)/python -m tools.endurance soak $(ARGS)

chaos: $(VENV)/.dev  ## Kill, stop and starve a server under load, by seed (ARGS="--seeds 50")
	$(BIN)/python -m tools.endurance chaos $(ARGS)

fuzz: $(VENV)/.dev  ## Damaged files for all readers, odd requests for all routes (ARGS="--hours 1 --seed 5")
	$(BIN)/python -m tools.fuzz $(ARGS)

bench: $(VENV)/.dev  ## Measure Tandem beside its peers, interleaved (needs the peers installed)
	$(BIN)/python -m loadtest compare $(ARGS)

kernels-compile: $(VENV)/.dev  ## Compile all Triton kernels for sm_80, sm_90 and sm_100; no GPU needed
	$(BIN)/python -m kernels.tools.compile $(ARGS)

mutants: $(VENV)/.dev  ## Put faults into the Triton kernels; each must be found (slow; ARGS="rms_norm")
	$(BIN)/python -m tests.helpers.kernels.mutants $(ARGS)

# Threads wait for each other as they do in the server (engine/runtime/threads.py).
bench-kernels: $(VENV)/.dev  ## Time the kernels on this machine (ARGS="rms_norm linear_w8 --device cuda")
	GOMP_SPINCOUNT=20000 $(BIN)/python -m kernels.tools.bench $(ARGS)

size: $(VENV)/.dev  ## The longest files
	@git ls-files '*.py' | xargs wc -l | sort -rn | head -15

growth: $(VENV)/.dev  ## Lines, central classes and lines per capability against main (ARGS="COMMIT")
	@$(BIN)/python -m tools.growth $(ARGS)

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tandem needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# tools/install.py says what pip does, and takes torch without CUDA where there is no NVIDIA driver.
# A stamp per set of packages: a second start installs nothing and needs no network.
$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(INSTALL) .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.serve

$(VENV)/.clients: $(VENV)/.dev
	@$(INSTALL) '.[dev,clients]'
	@touch $@

$(VENV)/.ship: $(VENV)/.dev
	@$(INSTALL) '.[dev,ship]'
	@touch $@

# Everything a newcomer needs is `make serve`; everything a change must pass is `make test`.
#
#   PYTHON=python3.12   the interpreter to create the environment with (otherwise the first suitable one found)
#   VENV=path           where the environment is (.venv)
#   JOBS=2              how many tests run at a time
#   ARGS="..."          more arguments for `hasten serve`, `hasten bench` or pytest

VENV ?= .venv
PYTHON ?=
JOBS ?= 2
ARGS ?=
TORCH := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check
# Stamps live in the environment: a new environment is set up anew, and a second `make` has nothing to do.
STAMPS := $(VENV)/.hasten
PACKAGE := pyproject.toml setup.py src/hasten/__init__.py
NATIVE := $(wildcard src/hasten/kernels/*/*.cpp src/hasten/kernels/*/*.h)
# Which of the two set-ups: `dev` where a check is asked for or where it is there already, as it includes `run`.
SETUP := $(if $(filter test lint types,$(MAKECMDGOALS))$(wildcard $(STAMPS)/dev),dev,run)

.DEFAULT_GOAL := help
.PHONY: help serve test lint types native sanitize bench clean

help: ## list these targets
	@echo "hasten: make TARGET [PYTHON=python3.12] [VENV=.venv] [ARGS=...]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile

serve: $(STAMPS)/native ## set up if needed and start the server with the built-in model
	@$(BIN)/hasten serve $(ARGS)

test: $(STAMPS)/native lint types ## lint, types and all tests, as continuous integration runs them
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(STAMPS)/dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMPS)/dev ## mypy: strict for the engine
	$(BIN)/mypy --num-workers auto

native: $(STAMPS)/native ## rebuild the native libraries if their sources changed

# A copy of the tree is built and tested, so that the libraries in use stay as they are. torch itself leaks on purpose.
sanitize: $(STAMPS)/dev ## test the native libraries under the address and undefined-behaviour sanitizers
	rm -rf build/sanitize && mkdir -p build/sanitize && cp -r src tests setup.py pyproject.toml README.md LICENSE build/sanitize/
	cd build/sanitize && rm -f src/hasten/kernels/*/*.so && \
	  CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined" $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(CURDIR)/build/sanitize/src $(abspath $(BIN))/python -m pytest -x -p no:cacheprovider tests/kernels tests/constraints $(ARGS)

bench: $(STAMPS)/native ## compare techniques with the plain engine
	@$(BIN)/hasten bench $(ARGS)

clean: ## remove builds and caches; the environment stays
	rm -rf build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f src/hasten/kernels/*/*.so $(STAMPS)/native
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the set-up, step by step ---

export PIP_NO_INPUT := 1

define SUITABLE
import sys
if sys.version_info < (3, 11): sys.exit(f"is Python {sys.version.split()[0]}, and hasten needs 3.11 or newer")
try: __import__("pip") if sys.prefix != sys.base_prefix else __import__("ensurepip")
except ImportError: sys.exit(f"has no pip or cannot create environments; on Debian or Ubuntu: apt install python{sys.version_info.major}.{sys.version_info.minor}-venv")
endef
export SUITABLE

# An environment that exists already (VENV=...) is taken as it is, if its Python is new enough.
$(STAMPS)/venv:
	@set -e; \
	if [ -x "$(BIN)/python" ]; then \
	  why=$$("$(BIN)/python" -c "$$SUITABLE" 2>&1) || { echo "hasten: $(BIN)/python $$why. Remove $(VENV) or name another one with VENV=" >&2; exit 1; }; \
	else \
	  tried=; found=; \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3 python3.13); do \
	    why=$$("$$python" -c "$$SUITABLE" 2>&1) && { found=$$python; break; }; \
	    tried="$$tried$$(printf '\n  %s %s' "$$python" "$$(echo "$$why" | tail -n 1)")"; \
	  done; \
	  [ -n "$$found" ] || { echo "hasten: no suitable Python found; install Python 3.11 or 3.12, or name one with PYTHON=. Tried:$$tried" >&2; exit 1; }; \
	  echo "hasten: creating $(VENV) with $$found"; \
	  "$$found" -m venv "$(VENV)"; \
	fi
	@mkdir -p "$(STAMPS)" && touch $@

# PyPI's torch for Linux brings gigabytes of CUDA. Without an NVIDIA driver PyTorch's own CPU builds are enough, where that index
# answers. It is an *extra* index: the version with the local label "+cpu" wins over the plain one, and the rest of the packages
# still come from wherever this machine's pip is told to look.
define TORCH_FITS
import sys
from importlib.metadata import PackageNotFoundError, version
try: found = tuple(map(int, version("torch").split("+")[0].split(".")[:2]))
except (PackageNotFoundError, ValueError): sys.exit(1)
sys.exit(not (2, 9) <= found < (3, 0))
endef
export TORCH_FITS

define ANSWERS
import os, sys, threading, urllib.request
def ask():
    try: os._exit(urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=3).status != 200)
    except Exception: os._exit(1)
threading.Thread(target=ask, daemon=True).start()
threading.Event().wait(3)  # looking up a name may hang for longer than any timeout of urllib
os._exit(1)
endef
export ANSWERS

$(STAMPS)/torch: $(STAMPS)/venv
	@set -e; \
	if ! "$(BIN)/python" -c "$$TORCH_FITS"; then \
	  from=; \
	  if ! nvidia-smi >/dev/null 2>&1 && "$(BIN)/python" -c "$$ANSWERS" $(TORCH_CPU_INDEX); then from="--extra-index-url $(TORCH_CPU_INDEX)"; fi; \
	  echo "hasten: installing torch $(TORCH) $${from:+(CPU build)}"; \
	  $(PIP) install torch==$(TORCH) $$from; \
	fi
	@touch $@

$(STAMPS)/run: $(STAMPS)/torch $(PACKAGE)
	$(PIP) install "setuptools>=77" -e ".[plots]"
	@touch $@

$(STAMPS)/dev: $(STAMPS)/torch $(PACKAGE)
	$(PIP) install -e ".[dev]"
	@touch $(STAMPS)/run $@

# Installing has built the kernels with pip hiding what was said; this builds again what failed or has changed since.
$(STAMPS)/native: $(STAMPS)/$(SETUP) $(NATIVE)
	@$(BIN)/python setup.py -q build_ext --inplace
	@! ls src/hasten/kernels/cpu/libhasten_*.so >/dev/null 2>&1 || touch $@

# A virtual environment is made when it is missing or when its pins changed; nothing outside this folder is touched, but
# that `make test` as root in a container installs Debian's openssh-server, and says so.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= auto

.PHONY: demo test sshd check format samples gpu venv clean

demo: $(READY)  ## three acts: a ticket found and made fast, speed won back, a real model that still reads
	$(BIN)/python samples/demo.py

test: $(READY) sshd  ## the test suite
	$(BIN)/python -m pytest -q -n $(JOBS) tests

sshd:  ## an SSH server, which plays the device in tests; without one they are skipped
	@sh tests/deploykit/get_sshd.sh

check: $(READY)  ## lint, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md passes deploykit samples tests

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

samples: $(READY)  ## the samples that need no download
	set -e; for sample in samples/0*.py; do echo "== $$sample"; $(BIN)/python $$sample; done

# TensorRT and builds for CUDA of PyTorch and ONNX Runtime are not brought along: those of the machine are used, and what
# is missing is said. So PYTHON is asked for, which has them, and not the environment of the tests.
gpu:  ## what CPUs cannot show, on a machine with an NVIDIA GPU: times, sparse kernels, outputs
	$(PYTHON) -m benchmarks.gpu $(GPU_OPTIONS)

venv: $(READY)

# Debian ships python3.11 without ensurepip; virtualenv from pip does without it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  $(PYTHON) -m pip install -q --target build/virtualenv virtualenv && \
	  PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv -q $(VENV); }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

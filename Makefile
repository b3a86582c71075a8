# Two commands on a fresh machine with Python and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# The newest supported Python at hand: on the PATH, or among pyenv's.
NEWEST_PYTHON ?= $(shell for p in python3.13 python3.12 $(HOME)/.pyenv/versions/3.13.*/bin/python3 \
	$(HOME)/.pyenv/versions/3.12.*/bin/python3; do $$p -c "" 2>/dev/null && echo $$p && break; done)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
PYTEST = $(VENV)/bin/python -m pytest -n auto

.PHONY: demo demo-detection test test-all test-newest test-multiprocess soak test-tpu test-gpu \
	bench-gpu docs colabs colab-links lint clean

# glibc gives large blocks back at once; on a CPU, faulting them in again costs a third of a step.
KEEP_MEMORY = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000

demo: $(VENV)/installed
	$(KEEP_MEMORY) $(VENV)/bin/python main.py --config=configs/digits.py --workdir=runs/digits

demo-detection: $(VENV)/installed
	$(KEEP_MEMORY) $(VENV)/bin/python main.py --config=configs/digit_scenes.py --workdir=runs/digit_scenes

test: $(VENV)/installed-test lint
	@$(VENV)/bin/python tests/versions.py
	$(PYTEST) -m "not slow"

# Also the tests that take minutes each.
test-all: $(VENV)/installed-test lint
	@$(VENV)/bin/python tests/versions.py
	$(PYTEST)

# The same on the newest Python and JAX; PyTorch's parity runs where PyTorch is pinned (3.11).
test-newest:
	@test -n "$(NEWEST_PYTHON)" || { echo "no Python 3.12 or 3.13 found: set NEWEST_PYTHON"; exit 1; }
	$(MAKE) test PYTHON="$(NEWEST_PYTHON)" VENV=.venv-newest

# Trainings killed at a hundred random moments, 20 minutes at most; each must end in the same bits.
soak: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.training.soak

# Two and four processes on one machine, also those that are slow.
test-multiprocess: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n 2 tests/training/test_processes.py

# TPU programs compiled by libtpu, in an environment of its own; no TPU is needed.
test-tpu: .venv-tpu/installed-tpu
	@.venv-tpu/bin/python tests/versions.py
	.venv-tpu/bin/python -m pytest -n 2 tests/ops/test_tpu_compile.py tests/test_benchmarks.py

.venv-tpu/installed-tpu: requirements.txt pyproject.toml
	$(or $(NEWEST_PYTHON),$(PYTHON)) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test,tpu]"
	@touch $@

# The GPU kernels in Triton's interpreter, and compiled for real chips; no GPU is needed. On Python
# 3.11, where PyTorch is pinned, which the interpreter works with.
test-gpu: .venv-gpu/installed-gpu
	@.venv-gpu/bin/python tests/versions.py
	.venv-gpu/bin/python -m pytest -n auto tests/ops -k gpu

.venv-gpu/installed-gpu: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[test,test-gpu]"
	@touch $@

# On a machine with an NVIDIA GPU: the kernels' tests there, then the benchmarks with their peers.
bench-gpu:
	PYTHON="$(or $(NEWEST_PYTHON),$(PYTHON))" benchmarks/gpu.sh

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The API reference, from the docstrings: build/docs/index.html.
docs: $(VENV)/installed
	$(PIP) --editable ".[docs]"
	$(VENV)/bin/python -m docs.api build/docs

# The notebooks from top to bottom, with their outputs stored; minutes each.
colabs: $(VENV)/installed
	$(PIP) --editable ".[colabs]"
	$(VENV)/bin/python -m colabs.execute

# In a fork: the notebooks' links and clones become its own. make colab-links REPOSITORY=you/yours
colab-links: $(VENV)/installed
	$(PIP) --editable ".[colabs]"
	$(VENV)/bin/python -m colabs.execute --links --repository=$(REPOSITORY)

clean:
	rm -rf .venv .venv-newest .venv-tpu .venv-gpu .venv-bench-gpu build *.egg-info

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable ".[test]"
	@touch $@

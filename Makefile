VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test test-all sanitize check docs bench clean

demo: $(VENV)/.installed
	$(BIN)/lissome demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

# The slow tests too.
test-all: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

# The kernels' tests on a build that stops at the first byte read or written outside of what was given.
NATIVE = src/lissome/kernels/native
sanitize: $(VENV)/.installed
	mkdir -p build
	$(CXX) -O1 -g -shared -fPIC -fopenmp -pthread -std=c++17 -fsanitize=address,undefined -fno-sanitize=shift -Wno-unknown-pragmas $(NATIVE)/*.cpp -o build/sanitized.so
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 LISSOME_NATIVE=$(CURDIR)/build/sanitized.so \
		OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -p no:cacheprovider tests/kernels -k "native or instruction or packed or test_ffn"

# Benchmarks hand other libraries' loosely typed things on; what they import and call must be there all the same.
LOOSE = arg-type assignment misc no-any-return no-untyped-call operator var-annotated
# Everything else that must hold: lint, format, types, the import contract, the docs.
check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=src:benchmarks $(BIN)/mypy benchmarks $(addprefix --disable-error-code ,$(LOOSE))
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.installed
	$(BIN)/mkdocs serve

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/encoder.py

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard src/lissome/kernels/native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

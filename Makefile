# Everything runs in $(VENV), which the first target that needs it creates. Set variables with make
# VAR=value. TRITON is the version that TORCH is made for; the CPU build of torch does not include it.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
SANITIZE_TESTS ?= tests/backends/test_native.py tests/backends/test_native_aligned.py tests/ops/test_sparse.py
PLANTED = tests/backends/test_planted.py
COMPILED = tests/tools/test_aot.py tests/backends/test_without_python.py
PYTEST_FLAGS ?=
SOAK ?=
ARM ?=
FILES = $(addprefix tests/$(1)/test_,$(addsuffix .py,$(2)))
OLDEST ?= keras==3.6.0 torch_geometric==2.3.1
INTERPRETED ?= $(call FILES,ops,attention masks scores varlen dropout ranges nan zeros jvp unknown_activation \
	saturated sparse fast) $(call FILES,backends,triton_edges) $(call FILES,distributed,blocks)
EMULATED ?= $(call FILES,ops,attention masks scores varlen dropout ranges nan zeros jvp unknown_activation \
	saturated memory_object func forward_mode hypothesis sparse fast inference) $(call FILES,backends,cuda_edges cuda_sliced cuda_sines) \
	$(call FILES,distributed,blocks)

BIN := $(VENV)/bin
SOURCES = $(shell find csrc tests benchmarks tools -name '*.cpp' -o -name '*.h' -o -name '*.cu')
SANITIZED := build/sanitize/_C.abi3.so
SANITIZER = ATTNKERNELS_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv build profile examples test interpret peers bench gpu sass sanitize arm soak docs lint format wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) and building attnkernels: a minute or two, longer with nvcc"
	$(BIN)/pip install -q "setuptools>=77" "$(TORCH)"
	$(BIN)/pip install -q --no-build-isolation -e ".[profile]"
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(if $(TRITON),$(BIN)/pip install -q "$(TRITON)")
	$(BIN)/pip install -q --no-build-isolation -e ".[test,dev]"
	touch $@

venv: $(VENV)/.dev ## the virtual environment, with the tools of tests and checks

build: $(VENV)/.run ## the C++ and CUDA library, only what has changed
	$(BIN)/python setup.py -q build_ext --inplace

profile: build ## the main job: attention over real text, time and memory against the formula
	$(BIN)/python -m attnkernels.profile --json build/profile.json --plot build/profile.png
	@echo "The plot is $(CURDIR)/build/profile.png"

examples: build ## the packages of the examples; then: .venv/bin/python -m examples.g2p, and others
	$(BIN)/pip install -q --no-build-isolation -e ".[examples]"
	$(BIN)/python -m examples.translate_data
	@for name in g2p translate caption_digits glimpse_digits graph_digits char_cost; do \
	$(BIN)/python -c "import examples.$$name" && echo "$(BIN)/python -m examples.$$name [--resume] [--full]"; done

test: $(VENV)/.dev build ## the tests; then those of the CUDA kernels, emulated
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(addprefix --ignore ,$(PLANTED) $(COMPILED)) \
	$(PYTEST_FLAGS)
	ATTNKERNELS_LIBRARY=$$($(BIN)/python tests/emulator/library.py) \
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --require native $(PYTEST_FLAGS) $(EMULATED)

interpret: $(VENV)/.dev build ## the tests of the Triton kernels, interpreted, in some minutes
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --require triton -W ignore::RuntimeWarning $(PYTEST_FLAGS) $(INTERPRETED)

peers: $(VENV)/.dev build ## tests of swapped modules against the real libraries, which it installs
	$(BIN)/pip install -q --no-build-isolation -e ".[peers]"
	$(BIN)/pip install -q --no-deps "dgl>=1.1; python_version < '3.13'" espnet OpenNMT-py speechbrain
	$(BIN)/pip install -q --no-deps --upgrade --target build/torchaudio torchaudio
	KERAS_BACKEND=torch PYTHONPATH=build/torchaudio $(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST_FLAGS) tests/interop
	$(BIN)/pip install -q --no-deps --upgrade --target build/oldest $(OLDEST)
	KERAS_BACKEND=torch PYTHONPATH=build/oldest $(BIN)/python -m pytest -q $(PYTEST_FLAGS) \
	tests/interop/test_keras.py tests/interop/test_pyg.py tests/interop/test_pyg_calls.py

bench: $(VENV)/.dev build ## the benchmark suite: a table of times and memory
	$(BIN)/python -m benchmarks.suite

gpu: $(VENV)/.dev build ## a check, benchmarks and tests of a GPU, under nine minutes, into build/gpu
	$(BIN)/python -m benchmarks.gpu --out build/gpu

sass: $(VENV)/.dev ## the machine code of the GPU kernels, and programs made of compiled models
	$(BIN)/python -m tools.sass
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST_FLAGS) $(COMPILED)

sanitize: $(VENV)/.dev ## the kernels' tests under AddressSanitizer and UBSan; faults planted in CUDA's
	ATTNKERNELS_SANITIZE=1 $(BIN)/python setup.py -q build_ext --build-lib build/sanitize/lib
	$(SANITIZER) ATTNKERNELS_LIBRARY=$(SANITIZED) \
	$(BIN)/python -m pytest -q $(PYTEST_FLAGS) $(SANITIZE_TESTS)
	LIBRARY=$$(ATTNKERNELS_SANITIZE=1 $(BIN)/python tests/emulator/library.py) && \
	$(SANITIZER) ATTNKERNELS_LIBRARY=$$LIBRARY $(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST_FLAGS) $(EMULATED)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST_FLAGS) $(PLANTED)

arm: $(VENV)/.dev ## a wheel for 64-bit ARM in dist, and its tests under QEMU; make arm ARM="tests/ops/test_nan.py"
	$(BIN)/python -m tools.arm $(ARM)

soak: $(VENV)/.dev build ## random cases for hours, memory that may not grow, races; make soak SOAK="--seed 1"
	$(BIN)/python -m tools.soak --races
	$(BIN)/python -m tools.soak --memory
	$(BIN)/python -m tools.soak $(SOAK)

docs: $(VENV)/.dev build ## the site in build/site, built strictly, and the tests of its code
	$(BIN)/pip install -q --no-build-isolation -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest -q $(PYTEST_FLAGS) tests/docs

lint: $(VENV)/.dev ## style and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

format: $(VENV)/.dev ## style, changing the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

wheel: $(VENV)/.run ## dist/*.whl
	rm -rf build/lib.* dist
	$(BIN)/pip wheel -q --no-build-isolation --no-deps -w dist .

clean: ## remove what the targets above made, except the virtual environment
	rm -rf build dist *.egg-info attnkernels/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find attnkernels benchmarks examples tests tools -name __pycache__ -exec rm -rf {} +

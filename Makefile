# The few commands of infercache, the same for people and CI. `make` alone explains them.
#
# They need Python >= 3.11 and Rust, nothing else: a virtual environment is made where there is none, and what goes into it
# is pinned by constraints.txt. Stamps in the virtual environment make a repeated command start at once.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SANITIZER = $(shell command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
# The newest CUDA that the driver runs decides which CuPy fits.
CUDA    = $(shell nvidia-smi 2> /dev/null | sed -n 's/.*CUDA[a-zA-Z ]* Version: *\([0-9]*\).*/\1/p' | head -1)
HOST    = $(shell rustc -vV | sed -n 's/^host: //p')

# Built in a third of the time, and half as fast: for builds of which only the behaviour is looked at.
QUICK_BUILD = CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1

# What the extension is built from.
RUST_SOURCES := Cargo.toml Cargo.lock .cargo/config.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)

# Installs the packages that the extras $(1) of pyproject.toml name (the project itself is built apart, by the stamp `built`).
define install_extras
@echo "==> installing what the extras '$(1)' of pyproject.toml name"
@$(BIN)/python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *(r for e in sys.argv[1:] for r in p["optional-dependencies"][e]), sep="\n")' $(1) > $@.requirements
@$(PIP) install --quiet --constraint constraints.txt --requirement $@.requirements
@touch $@
endef

.PHONY: help demo test test-rust test-python test-gpu lint format bench bench-short bench-gpu bench-edge bench-eviction wheel asan attached torch
.PHONY: models constraints clean
help:  ## this list
	@echo "infercache: never run the same inference twice. The commands:"
	@echo
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)$$/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo
	@echo "Needs Python >= 3.11 and Rust; PYTHON=… picks an interpreter, VENV=… the virtual environment ($(VENV))."

demo: $(STAMPS)/built $(STAMPS)/demo  ## a real embedding model answered from memory, measured (ARGS="--input FILE" …)
	@$(BIN)/infercache demo $(ARGS)

test: test-rust test-python  ## every test: the core's, its explored thread schedules, Python's

test-rust:  ## the core's tests alone
	cargo test --locked --package infercache-core
	cargo test --locked --package infercache-core --features explore --test 'explore*'

test-python: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/demo  ## Python's tests alone (ARGS="-k name" …)
	$(BIN)/python .ci/tests.py $(ARGS)

# compute-sanitizer comes with the CUDA toolkit. It finds the device's reads and writes out of bounds, and races in shared
# memory; it makes kernels some hundred times slower, so the tests of gigabytes are left out there.
test-gpu: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/gpu  ## on a machine with a GPU: the kernels' tests, then those under compute-sanitizer
	$(BIN)/python -c 'import cupy; print(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())'
	$(BIN)/python -m pytest tests/test_gpu.py tests/test_gpu_memoize.py tests/test_gpu_compiled.py tests/test_gpu_kernels.py tests/test_gpu_hashing.py $(ARGS)
	@if [ -z '$(SANITIZER)' ]; then echo "==> no compute-sanitizer on the PATH: memory and races were not checked"; exit; fi; \
	for tool in memcheck racecheck; do \
	  echo "==> compute-sanitizer $$tool"; \
	  CI=true '$(SANITIZER)' --tool $$tool --error-exitcode 9 --target-processes application-only \
	    $(BIN)/python -m pytest tests/test_gpu.py -o faulthandler_timeout=3600 \
	    -k 'every_length or every_alignment or ends or batches or strided_input or overwritten' $(ARGS); \
	done

lint: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/demo  ## formatting, lints, types, stubs, documentation links
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings
	cargo clippy --locked --package infercache-core --all-targets --features explore -- --deny warnings
	RUSTDOCFLAGS="--deny warnings --allow rustdoc::private-intra-doc-links" cargo doc --locked --quiet --workspace --no-deps --document-private-items
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist .ci/stubtest-allowlist infercache._core

format: $(STAMPS)/dev  ## formats Rust and Python in place
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/bench  ## every benchmark beside its peers; writes the tables of benches/README.md
	$(BIN)/python benches/report.py run --write $(ARGS)

bench-short: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/bench  ## the same in a few minutes, with coarse numbers, written nowhere
	$(BIN)/python benches/report.py run --short $(ARGS)

bench-gpu: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/gpu  ## on a machine with a GPU: 4 KiB to 4 GiB; writes the table of benches/README.md
	$(BIN)/python benches/bench_gpu.py --write $(ARGS)

bench-edge: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/demo $(STAMPS)/bench-edge  ## the gateway beside its peers (needs wrk; nginx if it is there); writes the table of benches/README.md
	$(BIN)/python benches/bench_edge.py --write $(ARGS)

bench-eviction: $(STAMPS)/built $(STAMPS)/dev $(STAMPS)/bench-eviction  ## model time that eviction policies save on real traces (INFERCACHE_SHARED: where they are); writes the tables of benches/eviction.md
	$(BIN)/python benches/bench_eviction.py --write $(ARGS)

wheel: $(STAMPS)/dev  ## wheel and sdist in dist/, each installed into an empty virtual environment and tried there
	$(BIN)/python .ci/wheel.py $(QUICK_BUILD)

asan:  ## the core's tests and stress run under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=target/asan \
	  cargo test --locked --package infercache-core --lib --test cache --test eviction --test envelope --test envelope_memory --test replay --test stress --target $(HOST)

# The build that users get leaks a reference that is dropped without the interpreter (.cargo/config.toml), and nothing would
# tell of it; this one ends the process there. ATTACHED: the tests that use threads, every kind of value, every thread's end.
ATTACHED = fork released memoize batch batch_company flight waits loops stale methods uncacheable events processes dlpack \
  device device_memoize json arguments tensor_libraries value_arrays value_models value_records fingerprint leases \
  tier_exchange tier_fork tier_values coherence coherence_faults
attached: $(STAMPS)/dev  ## tests under a build that aborts where a reference is dropped without the interpreter
	@echo "==> building the extension once more (a minute or two the first time)"
	@rm -rf target/attached/python target/attached/wheel
	RUSTFLAGS="--cfg pyo3_disable_reference_pool" CARGO_TARGET_DIR=target/attached $(QUICK_BUILD) \
	  $(BIN)/python -m maturin build --locked --quiet --out target/attached/wheel
	@$(PIP) install --quiet --no-deps --target target/attached/python target/attached/wheel/*.whl
	PYTHONPATH=target/attached/python $(BIN)/python -c 'import infercache; assert infercache._core.DETACHED_DROPS == "abort", infercache.__file__'
	PYTHONPATH=target/attached/python $(BIN)/python -m pytest $(ATTACHED:%=tests/test_%.py) $(ARGS)

torch: $(STAMPS)/torch  ## installs torch (5 GB with its GPU libraries on Linux), which the tests use where it is present

models: $(STAMPS)/models  ## installs a real chat model and its server (280 MB), which the gateway's tests use where they are present

constraints: $(STAMPS)/dev $(STAMPS)/demo $(STAMPS)/bench $(STAMPS)/bench-eviction $(STAMPS)/models  ## writes constraints.txt anew from what a fresh .venv got
	@sed -n '/^#/p' constraints.txt > $(STAMPS)/constraints
	@$(PIP) freeze --exclude infercache --exclude cupy-cuda12x --exclude cupy-cuda13x >> $(STAMPS)/constraints
	@sed -n '/^cupy-cuda/p' constraints.txt >> $(STAMPS)/constraints  # only one of the two can be installed
	@cp $(STAMPS)/constraints constraints.txt

clean:  ## removes everything that the commands made
	rm -rf target dist build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find python tests benches .ci -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/infercache/_core*.so python/infercache/_core*.pyd

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "infercache needs Python >= 3.11, and '$(PYTHON)' is not: name another with PYTHON=…" >&2; exit 1; }
	@command -v cargo > /dev/null || { \
	  echo "infercache needs Rust to be built, and 'cargo' is not on the PATH: https://rustup.rs installs it" >&2; exit 1; }
	@echo "==> making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module is missing: on Debian and Ubuntu the package python3-venv has it" >&2; exit 1; }
	@mkdir -p $(STAMPS)
	@touch $@

# The build tool that pyproject.toml names, in the virtual environment, so that a rebuild takes no isolated environment.
$(STAMPS)/maturin: $(STAMPS)/venv
	@$(PIP) install --quiet --constraint constraints.txt maturin
	@touch $@

$(STAMPS)/built: $(STAMPS)/maturin $(RUST_SOURCES) pyproject.toml
	@echo "==> building the extension in release (about a minute the first time)"
	@MATURIN_PEP517_ARGS=--locked $(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/maturin pyproject.toml constraints.txt
	$(call install_extras,dev)

$(STAMPS)/demo: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install_extras,demo)

# LiteLLM's proxy brings some eighty packages, several in versions that others here have outgrown: it has an environment to itself.
$(STAMPS)/bench-edge: $(STAMPS)/dev pyproject.toml
	@echo "==> installing what the extra 'bench-edge' of pyproject.toml names into $(VENV)/litellm"
	@$(PYTHON) -m venv $(VENV)/litellm
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench-edge"], sep="\n")' > $@.requirements
	@$(VENV)/litellm/bin/python -m pip --disable-pip-version-check install --quiet --requirement $@.requirements
	@touch $@

$(STAMPS)/bench: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install_extras,bench)

$(STAMPS)/bench-eviction: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install_extras,bench-eviction)

$(STAMPS)/gpu: $(STAMPS)/venv pyproject.toml constraints.txt
	@[ -n '$(CUDA)' ] || { echo "nvidia-smi names no CUDA version: is there an NVIDIA GPU, and its driver?" >&2; exit 1; }
	$(call install_extras,$(if $(filter-out 9 10 11 12,$(CUDA)),gpu-cuda13,gpu-cuda12))

$(STAMPS)/models: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install_extras,dev-models)

$(STAMPS)/torch: $(STAMPS)/venv
	$(call install_extras,dev-torch)

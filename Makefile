# make demo   install and merge a real adapter, with scores side by side
# make test   install and run the fast tests (under 10 minutes on two cores)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow-test check bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .[peft] \
		bitsandbytes compressed-tensors hypothesis pyright pytest pytest-timeout pytest-xdist ruff safetensors
	touch $@

demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

slow-test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 -m slow

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/installed
	$(BIN)/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf $(VENV)

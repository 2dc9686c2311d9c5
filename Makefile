# Every target works on a fresh clone with nothing but Python 3 and make: it makes .venv and installs from PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKED := src tests benchmarks examples

.PHONY: setup demo test check bench bench-accuracy bench-speed format clean

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/transpike demo

test: $(READY)
	$(BIN)/python -m pytest -m 'not slow' -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/python -m benchmarks.run

bench-accuracy: $(READY)
	$(BIN)/python -m benchmarks.board
	$(BIN)/python -m benchmarks.pages

bench-speed: $(READY)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.engines

format: $(READY)
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache transpike-demo

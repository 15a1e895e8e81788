# Verbs of the project. CI and people call the same ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all lint bench chaos serve clean

install: $(STAMP)

# torch comes first and through pip: its CPU build is chosen by the exact version in constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install  ## render the example film on this machine; needs no GPU
	$(BIN)/reelray render examples/first_film.yaml -o out/first_film.mp4 --set data_dir=out/state

# What needs no cluster runs side by side, a file on one core; what starts Ray, a server or a browser has the machine.
SIDE_BY_SIDE := tests/unit tests/wire
ONE_BY_ONE := tests $(SIDE_BY_SIDE:%=--ignore=%)
SPREAD := -n logical --maxprocesses 4 --dist loadfile
FAST := not slow and not chaos and not gpu and not bench
ALL ?= not gpu and not bench

test: install  ## fast tests, a few minutes on two cores
	$(BIN)/python -m pytest -m "$(FAST)" $(SPREAD) $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "$(FAST)" $(ONE_BY_ONE)

test-all: install  ## every test that needs no GPU
	$(BIN)/python -m pytest -m "$(ALL)" $(SPREAD) $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "$(ALL)" $(ONE_BY_ONE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: install  ## run the models and the Director on this machine; continues every open job
	$(BIN)/reelray serve

bench: install  ## measurements with tables; see tests/bench/reports
	$(BIN)/python -m tests.bench

chaos: install  ## kill everything by a seed for an hour, check every film; CHAOS="--seed 5 --kills 50" for another run
	$(BIN)/python -m tests.chaos $(CHAOS)
	$(BIN)/python -m tests.chaos matrix

clean:
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache

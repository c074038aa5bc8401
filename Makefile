# Two commands: make demo, make test. Both make .venv when it is not there or not current.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format docs clean

# some methods of every kind, beside equal and random weights, so that it ends within two or three minutes; without
# --balancers all are compared
DEMO := uncertainty mgda pcgrad graddrop cagrad nash_mtl upgrad pomsi

demo: $(VENV)/.bench
	$(BIN)/counterpoint compare digits --balancers $(DEMO) --out runs/demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell src tests examples tools README.md CHANGELOG.md CONTRIBUTING.md

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what is generated from the classes: the pages of docs/methods, the table of the README, and the picture and table of
# docs/toy.md from the walks that are recorded (tools/toy.py walks what is not)
docs: $(VENV)/.dev
	$(BIN)/python tools/docs.py
	$(BIN)/python tools/toy.py --draw

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Counterpoint needs Python 3.11 or newer; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (torch is large: this takes a while the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (torch is large: this takes a while the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.bench

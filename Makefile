# `make compare` and `make test` work from a fresh clone: they create the environment themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
NAME   ?= zoo-small

.PHONY: compare test lint bench notebooks docs figures clean

compare: $(VENV)/.core
	$(BIN)/steerlab compare zoo:small-base zoo:small-post --out runs/$(NAME) --overwrite

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/capture.py
	$(BIN)/python benchmarks/steering.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/neurons.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/branching.py
	$(BIN)/python benchmarks/alignment.py
	$(BIN)/python benchmarks/start.py

notebooks: $(VENV)/.dev
	STEERLAB_PROGRESS=0 $(BIN)/jupyter-execute --inplace notebooks/*.ipynb
	$(BIN)/python notebooks/finish.py

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

figures: $(VENV)/.dev
	$(BIN)/python analyses/base_vs_post.py analyses/zoo_small.toml

$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "steerlab needs Python 3.11 or newer; name one with make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Two commands: `make demo` shows what this is, `make test` proves that it works.
# Both set themselves up; nothing is needed but Python (3.11 or newer), git and make.
PYTHON ?= python3
VENV   ?= .venv
READY  := $(VENV)/.ready

.PHONY: demo test clean

demo: $(READY)
	$(VENV)/bin/convatlas demo

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n 2

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "convatlas needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing (torch is large: about three minutes) ..."
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

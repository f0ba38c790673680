# `make fit` sets everything up and trains on bundled images; `make test` runs all checks. Needs Python >= 3.11 and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/photos
# Most tests wait for one thread, or for a process of their own: two at a time, each file in one place.
TESTS ?= --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: all setup fit test docs clean

all: setup

# Reinstalled when the package's metadata or the pinned builds change.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "lvd-juice needs Python >= 3.11; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Provides Julia where there is none; quick where there is.
setup: $(VENV)/installed
	$(BIN)/lvd-juice setup

# A second call finishes the run or reports what it found.
fit: setup
	$(BIN)/lvd-juice fit photos --output $(RUN) $(if $(wildcard $(RUN)/settings.toml),--resume,--preset tiny)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest $(TESTS)

# The documentation site, with an API reference made from the docstrings; whatever is missing or stale fails it.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build site *.egg-info

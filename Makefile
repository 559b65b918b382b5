# make demo    set up and play the whole story on the embedded default (core, router and rag extras)
# make test    set up and run the tests
# make check   lint, types, floors, schemas in step with the models
# make bench   measure speed as ratios, into build/bench.json
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test check bench soak schemas pin lock format clean

demo: $(VENV)/demo.stamp
	$(BIN)/bundlectl demo

# Three at once on two cores, for a third of the tests' time is spent waiting for a server or a deadline. Files are
# dealt out in the order of their folders: the longest stand in the first ones, so that no core is left with one at the
# end. Hundreds of processes are started: each would compile the package anew where bytecode is not to be kept.
JOBS ?= 3
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python schemas/generate.py --check

bench: $(VENV)/dev.stamp
	$(BIN)/python -m tests.benchmarks --write build/bench.json

soak: $(VENV)/dev.stamp
	$(BIN)/python -m tests.benchmarks --soak --write build/bench.json

schemas: $(VENV)/dev.stamp
	$(BIN)/python schemas/generate.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The development lock is solved first: a stand-in for AWS pins the client library, and users get the tested one.
COMPILE = uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
lock:
	$(COMPILE) --extra all --extra dev pyproject.toml -o requirements-dev.lock
	$(COMPILE) --extra router --extra rag -c requirements-dev.lock pyproject.toml -o requirements.lock
	$(COMPILE) --extra server -c requirements-dev.lock pyproject.toml -o deploy/requirements.lock

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --editable .
	touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/demo.stamp
	$(PIP) install --require-hashes -r requirements-dev.lock
	touch $@

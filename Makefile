# make demo    a virtual environment, the core and the CPU backend; generates text with the small checkpoint
# make test    the same environment and the test tools; lint, types and every test
# make verify  every conformance case of what runs here, and the suite itself against planted bugs
# All are incremental: nothing is installed twice until a pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= The for statement
WORKERS ?= 2

bin := $(VENV)/bin
install := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test verify lint clean

demo: $(VENV)/.model
	$(bin)/hal generate examples/tiny-v4 --prompt "$(PROMPT)" --max-new-tokens 200

test: lint
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n $(WORKERS)

verify: $(VENV)/.test
	$(bin)/hal verify reference
	$(bin)/hal verify cpu
	$(bin)/hal verify cuda@emulated
	$(bin)/hal verify --self --readme README.md

lint: $(VENV)/.test
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

clean:
	rm -rf $(VENV)

# torch comes first and pinned: a later range is then already satisfied.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(install) torch
	@touch $@

$(VENV)/.model: $(VENV)/.torch pyproject.toml backends/cpu/pyproject.toml
	$(install) --editable '.[model]' --editable backends/cpu
	@touch $@

$(VENV)/.test: $(VENV)/.model emulators/pyproject.toml backends/triton/pyproject.toml backends/cuda/pyproject.toml backends/plain/pyproject.toml backends/mlu/pyproject.toml
	$(install) --editable '.[test]' --editable 'emulators[triton]' --editable backends/triton --editable backends/cuda --editable backends/plain --editable backends/mlu
	@touch $@

# make demo    a virtual environment, the core and the CPU backend; generates text with the small checkpoint
# make test    the same environment and the test tools; lint, types and every test
# make compile every Triton kernel, compiled for GPUs that are not here
# make compile-ascend  likewise for Ascend, in an environment of its own; downloads 220 MB
# make old-torch  the core and the MLU backend on torch 2.7.1 and 2.11.0, in environments of their own; downloads 5 GB
# make docs    the site, strictly, into build/site
# make verify  every conformance case of what runs here, and the suite itself against planted bugs
# All are incremental: nothing is installed twice until a pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= The for statement
WORKERS ?= 2

bin := $(VENV)/bin
ascend := .venv-ascend/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
triton := .venv-triton-ascend/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
install := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: .venv-ascend .wheels-cuda demo test compile compile-ascend old-torch docs verify lint clean

demo: $(VENV)/.model
	$(bin)/hal generate examples/tiny-v4 --prompt "$(PROMPT)" --max-new-tokens 200

test: lint .venv-ascend .wheels-cuda
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n $(WORKERS)

compile: $(VENV)/.test
	$(bin)/hal compile cuda --page docs/kernels.md

# triton-ascend overwrites stock Triton, so it gets an environment of its own; neither wheel declares what it needs.
compile-ascend: .venv-triton-ascend/.ready
	.venv-triton-ascend/bin/hal compile ascend --page docs/backends/ascend.md

.venv-triton-ascend/.ready: constraints.txt backends/triton/pyproject.toml backends/plain/pyproject.toml backends/ascend/pyproject.toml
	$(PYTHON) -m venv .venv-triton-ascend
	$(triton) torch pybind11 && $(triton) --no-deps triton-ascend ascendnpu-ir && \
	$(triton) --editable '.[model]' --editable backends/triton --editable backends/plain --editable backends/ascend
	@touch $@

# PyPI has these releases as CUDA builds only. Cambricon's public torch_mlu belongs to them.
old-torch: .venv-torch-2.7.1/.ready .venv-torch-2.11.0/.ready
	for version in 2.7.1 2.11.0; do \
	  OMP_NUM_THREADS=1 .venv-torch-$$version/bin/python -m pytest -n $(WORKERS) \
	    tests/core tests/formats tests/reference tests/numerics tests/model backends/mlu || exit 1; done

.venv-torch-%/.ready: pyproject.toml emulators/pyproject.toml backends/cpu/pyproject.toml backends/plain/pyproject.toml backends/triton/pyproject.toml backends/mlu/pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check torch==$* transformers==5.23.0 \
	  setuptools pytest pytest-xdist hypothesis ml_dtypes
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[model]' --editable emulators \
	  --editable backends/cpu --editable backends/plain --editable backends/triton --editable backends/mlu
	@touch $@

verify: $(VENV)/.test
	$(bin)/hal verify reference
	$(bin)/hal verify cpu
	$(bin)/hal verify cuda@emulated
	$(bin)/hal verify mlu@emulated
	$(bin)/hal verify --self --readme README.md

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict

lint: $(VENV)/.test
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

clean:
	rm -rf $(VENV) .venv-ascend .venv-triton-ascend .venv-torch-2.7.1 .venv-torch-2.11.0 .wheels-cuda

# torch_npu in an environment of its own: with it installed, a bare `import torch` needs CANN or its stand-ins. Where the
# wheel cannot be had, its tests say that they are incomplete.
.venv-ascend: .venv-ascend/.ready

.venv-ascend/.ready: constraints.txt emulators/pyproject.toml backends/triton/pyproject.toml backends/plain/pyproject.toml backends/ascend/pyproject.toml
	$(PYTHON) -m venv .venv-ascend
	$(ascend) torch pytest pyyaml && $(ascend) --no-deps torch_npu==2.13.0 && \
	$(ascend) --editable '.[model]' --editable backends/cpu --editable backends/plain --editable backends/triton \
	  --editable backends/ascend --editable emulators && touch $@ || echo "torch_npu cannot be installed here"

# The production libraries' own Python, for the tests of the adapters; 95 MB, unpacked and never installed. Where they cannot
# be had, those tests say that they are incomplete.
.wheels-cuda: .wheels-cuda/.ready

.wheels-cuda/.ready: $(VENV)/.torch backends/cuda/wheels.txt
	$(bin)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest .wheels-cuda -r backends/cuda/wheels.txt \
	  && touch $@ || echo "the CUDA libraries' wheels cannot be had here"

# torch comes first and pinned: a later range is then already satisfied.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(install) torch
	@touch $@

$(VENV)/.model: $(VENV)/.torch pyproject.toml backends/cpu/pyproject.toml
	$(install) --editable '.[model]' --editable backends/cpu
	@touch $@

$(VENV)/.test: $(VENV)/.model emulators/pyproject.toml backends/triton/pyproject.toml backends/cuda/pyproject.toml backends/plain/pyproject.toml backends/mlu/pyproject.toml backends/ascend/pyproject.toml backends/jax/pyproject.toml
	$(install) --editable '.[test]' --editable 'emulators[triton]' --editable backends/triton --editable backends/cuda --editable backends/plain --editable backends/mlu --editable backends/ascend --editable backends/jax
	@touch $@

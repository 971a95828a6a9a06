"""What a call must return: the reference in the model's dtype passes, and damage to any output is noticed and named."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from hal.numerics import Precision
from hal.numerics.contracts import expect
from hal.ops import CONTRACTS


def load(path):
    module, name = path.split(":")
    return getattr(import_module(module), name)


def samples(contract):
    return list(load(CONTRACTS[contract].samples)())


CASES = [(name, sample) for name in CONTRACTS for sample in samples(name)]


def call(name, sample):
    """Expectation, outputs of the reference in the sample's own dtype, and the arguments it left behind."""
    arguments = sample.arguments()
    expectation = expect(name, arguments, sample.attributes)
    return expectation, load(CONTRACTS[name].reference)(*arguments, **sample.attributes), arguments


@pytest.mark.parametrize(("name", "sample"), CASES, ids=[f"{name}/{sample.title}" for name, sample in CASES])
def test_the_reference_in_the_models_dtype_passes(name, sample):
    expectation, outputs, arguments = call(name, sample)
    verdict = expectation.judge(outputs, arguments)
    assert verdict, "\n".join(part.text for part in verdict.parts if not part)

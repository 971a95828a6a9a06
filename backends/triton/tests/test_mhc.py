"""`mhc.pre` and `mhc.post` of the Triton kernels against the references, beyond the conformance suite's samples."""

import pytest
import torch
from hal_triton import mhc

from hal.conformance.samples.mhc import post_sample, pre_sample
from hal.numerics.contracts import expect

pytest.importorskip("triton")


@pytest.mark.parametrize(("tokens", "hidden"), [(17, 320), (3, 1000)])
def test_channels_and_tokens_that_fill_no_tile(tokens, hidden):
    for run, sample in (
        (mhc.pre, pre_sample(tokens, hidden, "bfloat16")),
        (mhc.post, post_sample(tokens, hidden, "bfloat16")),
    ):
        arguments = sample.arguments()
        wanted = expect(sample.contract, arguments, sample.attributes)
        assert wanted.judge(run(*arguments, **sample.attributes), arguments)


def test_weights_keep_every_bit_in_three_parts():
    """A projection whose weights differ in their last bits only: bfloat16, or tf32, would give zero."""
    streams = torch.ones(1, 4, 256, dtype=torch.bfloat16)
    fn = torch.full((24, 1024), 1.0)
    fn[:, ::2] = 1.0 - 2.0**-24
    fn[:, 1::2] = -1.0
    base, scale = torch.zeros(24), torch.full((3,), 2.0**12)
    _, post, _ = mhc.pre(streams, fn, scale, base, iterations=1, norm_eps=0.0, eps=0.0)
    want = 2 * torch.sigmoid(torch.tensor(-512 * 2.0**-24 * 2.0**12))
    torch.testing.assert_close(post, want.expand(1, 4))

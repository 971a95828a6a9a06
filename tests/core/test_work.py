"""What a call cannot avoid, against numbers written out by hand."""

from __future__ import annotations

import pytest

from hal.bench.work import Work, work
from hal.conformance.samples import Sample, attention, experts, matmul, mhc
from hal.conformance.samples.batches import Requests
from hal.formats import quantize

TWO = Requests("two", (1, 1), (1000, 10))
ROW, QUERY = 584, 64 * 512 * 2


def counted(sample: Sample, outputs: object) -> Work:
    return work(sample.contract, sample.arguments(), sample.attributes, outputs)


def attend(kind: str, ratio: int) -> Sample:
    return attention.attend_sample(kind, ratio, TWO, "bfloat16", "v4_584", heads=64, top_k=512, holes="selected")


@pytest.mark.parametrize(
    ("kind", "ratio", "far", "listed"),
    [("swa", 0, 0, 0), ("hca", 128, 7, 0), ("csa", 4, 250 + 2, 2 * 512 * 4)],
)
def test_attention_reads_each_row_that_it_sees_once(kind: str, ratio: int, far: int, listed: int) -> None:
    sample = attend(kind, ratio)
    q = sample.arguments()[0]
    rows = 128 + 11 + far
    assert counted(sample, q) == Work(4 * QUERY + 64 * 4 + rows * ROW + listed, 4 * 64 * 512 * rows)


def test_a_token_that_may_choose_all_it_sees_needs_no_scores() -> None:
    few, many = (attention.select_sample(TWO, "bfloat16", "index_mxfp4_68", heads=64, top_k=k) for k in (512, 16))
    assert counted(few, ()) == Work(0, 0)
    query = 64 * 128 * 2 + 64 * 2
    assert counted(many, ()) == Work(query + 250 * 68, 2 * 64 * 128 * 250)


def test_experts_without_rows_are_not_read() -> None:
    sample = experts.experts_sample(1, "fp8_block128", "e4m3_128", "spread")
    sent, w13, w2 = sample.arguments()
    per_expert = (256 * 256 + 256 * 128) + (2 * 2 + 2 * 1)
    assert w13.bytes + w2.bytes == 16 * per_expert
    rows = 6 * (256 + 2 * sent.scales.element_size() + 4)
    assert counted(sample, ()) == Work(rows + 6 * per_expert, 2 * 6 * (256 * 256 + 256 * 128))


def test_quantisers_read_values_and_write_codes_and_scales() -> None:
    sample = matmul.quantize_sample(5, 256, "e4m3_128", "bfloat16")
    (x,) = sample.arguments()
    made = quantize(x, "e4m3_128")
    assert counted(sample, (made.codes, made.scales)).bytes == 5 * (256 * 2 + 256 + 2 * made.scales.element_size())


def test_the_least_time_is_set_by_the_scarcer_of_the_two() -> None:
    assert Work(100, 1000).seconds(bandwidth=10, flops=1000) == 10
    assert Work(100, 1000).seconds(bandwidth=1000, flops=10) == 100


def test_streams_are_read_once_by_each_half_of_a_hyper_connection() -> None:
    pre, post = mhc.pre_sample(5, 256, "bfloat16"), mhc.post_sample(5, 256, "bfloat16")
    small = (24 * 1024 + 3 + 24) * 4
    assert counted(pre, ()) == Work(5 * 1024 * 2 + small, 2 * 5 * 1024 * (24 + 2))
    assert counted(post, ()) == Work(5 * (256 + 1024) * 2 + 5 * 20 * 4, 2 * 5 * 1024 * 5)

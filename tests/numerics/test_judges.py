"""Each rule of the judge accepts what it should and names what it rejects."""

import pytest
import torch

from hal.numerics import (
    Exact,
    Grid,
    Selection,
    Sums,
    Verdict,
    judge_exact,
    judge_grid,
    judge_selection,
    judge_sums,
)

BF16 = torch.bfloat16


@pytest.fixture
def r():
    return torch.randn(40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sums(r, noise=0.0, dtype=BF16, **more):
    return Sums(r, torch.tensor(noise, dtype=torch.float64), dtype, r.to(dtype), **more)


def test_an_honest_output_passes(r):
    v = judge_sums(r.to(BF16), sums(r), output="out")
    assert v
    assert v.passed
    assert v.ratio == pytest.approx(1, abs=0.05)
    assert v.text.startswith("out: passed")


def test_one_element_two_ulps_off_fails_and_is_named(r):
    y = r.to(BF16)
    r[3, 5] = 1.0
    y[3, 5] = 1 + 2 * 2.0**-7
    v = judge_sums(y, sums(r))
    assert (v.rule, v.coordinate, v.got, v.wanted) == ("bound", (3, 5), 1.015625, 1.0)
    assert v.ulps == pytest.approx(2)
    assert v.bound == pytest.approx(2.0**-7)
    assert "[3, 5]" in v.text


def test_noise_widens_the_bound(r):
    y = r.to(BF16)
    r[3, 5], y[3, 5] = 1.0, 1.015625
    assert judge_sums(y, sums(r, noise=2.0**-7 / 4))


def test_a_second_rounding_everywhere_fails_by_ratio(r):
    down = (r * (1 - 2.0**-9)).to(BF16)  # a quarter to half a spacing, in one direction and then the other
    up = (r * (1 + 2.0**-9)).to(BF16)
    mixed = torch.where(torch.rand(r.shape, generator=torch.Generator().manual_seed(5)) < 0.5, down, up)
    v = judge_sums(mixed, sums(r))
    assert (v.passed, v.rule) == (False, "ratio")
    assert v.ratio > 1.25
    assert v.sigmas == 0  # no single element is off by more than a spacing


def test_a_truncating_store_fails_by_its_lean(r):
    bits = r.float().view(torch.int32) & -65536
    v = judge_sums(bits.view(torch.float32).to(BF16), sums(r))
    assert not v
    assert v.rule == "ratio"
    assert "bias" in v.note
    assert v.bias == pytest.approx(-1.73, abs=0.1)
    assert v.z < -20


def test_a_lean_that_truncating_accumulators_explain_passes():
    r = 1 + torch.rand(64, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    noise = torch.full_like(r, 2.0**-10)
    y = (r - noise).to(BF16)
    assert judge_sums(y, Sums(r, noise, BF16)).rule == "bias"
    assert judge_sums(y, Sums(r, noise, BF16, one_sided=noise))


def test_infinities_and_nans_must_stand_where_the_reference_has_them(r):
    r[0, 0], r[0, 1], r[0, 2] = torch.inf, -torch.inf, torch.nan
    y = r.to(BF16)
    assert judge_sums(y, sums(r))
    for place, value in (((0, 0), 1.0), ((0, 1), torch.inf), ((0, 2), 0.0), ((5, 5), torch.nan), ((6, 6), torch.inf)):
        wrong = y.clone()
        wrong[place] = value
        v = judge_sums(wrong, sums(r))
        assert (v.rule, v.coordinate) == ("mask", place)


def test_at_the_end_of_the_range_both_answers_are_right():
    r = torch.full((8, 8), 65519.0, dtype=torch.float64)
    for value in (65504.0, torch.inf):
        assert judge_sums(torch.full((8, 8), value).half(), Sums(r, torch.tensor(0.0), torch.float16))
    assert not judge_sums(torch.full((8, 8), -torch.inf).half(), Sums(r, torch.tensor(0.0), torch.float16))


def test_shape_and_dtype_are_judged_first(r):
    assert judge_sums(r.to(BF16)[:1], sums(r)).rule == "shape"
    assert judge_sums(r.float(), sums(r)).rule == "dtype"
    assert judge_sums(torch.empty(0, 4, dtype=BF16), sums(torch.empty(0, 4).double()))


@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 2.0**20])
def test_the_verdict_does_not_depend_on_the_scale_of_the_data(r, scale):
    y = (r + 0.02 * r.abs()).to(BF16)
    want = judge_sums(y, sums(r))
    got = judge_sums((y.double() * scale).to(BF16), sums(r * scale))
    assert (got.rule, got.margin) == (want.rule, pytest.approx(want.margin))


def test_few_elements_are_given_room():
    r = torch.tensor([[0.3, -1.7, 0.9]], dtype=torch.float64)
    assert judge_sums(r.to(BF16), sums(r))


def test_the_verdict_on_a_call_is_its_worst_part(r):
    good, bad = judge_sums(r.to(BF16), sums(r), output="a"), judge_sums(r.to(BF16) * 2, sums(r), output="b")
    whole = Verdict.of([good, bad, good])
    assert (whole.passed, whole.output, whole.parts) == (False, "b", (good, bad, good))


@pytest.fixture
def scores():
    return torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def choose(scores, k):
    return scores.topk(k).indices.int()


def test_the_best_pass_in_any_order(scores):
    want = Selection(scores, torch.tensor(0.0), 8)
    assert judge_selection(choose(scores, 8), want)
    assert judge_selection(choose(scores, 8).flip(1), want)


def test_another_choice_passes_only_within_the_noise(scores):
    ids = choose(scores, 9)
    ids = torch.cat([ids[:, :7], ids[:, 8:]], 1)  # the ninth instead of the eighth
    v = judge_selection(ids, Selection(scores, torch.tensor(0.0), 8))
    assert v.rule == "selection"
    assert v.wanted > v.got
    gap = float((scores.topk(9).values[:, 7] - scores.topk(9).values[:, 8]).max())
    assert judge_selection(ids, Selection(scores, torch.tensor(gap / 6), 8))


def test_exact_ties_are_free():
    scores = torch.zeros(2, 10, dtype=torch.float64)
    scores[:, 0] = 1
    for ids in ([[0, 3, 9], [0, 1, 2]], [[7, 0, 8], [5, 0, 4]]):
        assert judge_selection(torch.tensor(ids), Selection(scores, torch.tensor(0.0), 3))
    assert not judge_selection(torch.tensor([[1, 2, 3], [0, 1, 2]]), Selection(scores, torch.tensor(0.0), 3))


@pytest.mark.parametrize(
    ("row", "rule", "words"),
    [
        ([0, 1, -1, -1], "selection", "chose 2"),
        ([0, 0, 1, -1], "selection", "twice"),
        ([0, -1, 1, 2], "padding", "follows the padding"),
        ([0, 1, 3, -1], "padding", "may not see"),
        ([0, 1, 9, -1], "padding", "outside"),
        ([0, 1, -2, -1], "padding", "outside"),
        ([0, 1, 2, -1], "selection", ""),
    ],
)
def test_padding_and_duplicates(row, rule, words):
    scores = torch.tensor([[3.0, 2.0, 1.0, -torch.inf]], dtype=torch.float64)
    v = judge_selection(torch.tensor([row]), Selection(scores, torch.tensor(100.0), 4))
    assert (v.passed, v.rule) == (row == [0, 1, 2, -1], rule)
    assert words in v.text


def test_codes_may_differ_by_a_step_where_the_noise_reaches_the_midpoint():
    exact = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    noise, step = torch.tensor(1e-3), torch.tensor(1.0)
    want = Grid(exact, exact.round(), noise, step)
    rng = torch.Generator().manual_seed(2)
    honest = (exact + 1e-3 * torch.randn(exact.shape, dtype=torch.float64, generator=rng)).round()
    assert judge_grid(honest, want)
    assert int((honest != exact.round()).sum()) > 0
    assert judge_grid(exact.round() + (exact == 7.25), want).rule == "codes"  # no midpoint is near
    assert judge_grid(exact.trunc(), want).rule == "codes"
    away = torch.where((exact.frac().abs() - 0.5).abs() < 1e-9, exact + exact.sign() / 2, exact.round())
    assert judge_grid(away, want)  # within the noise of a midpoint either side is right ..
    assert not judge_grid(away, Grid(exact, exact.round(), torch.tensor(0.0), step))  # .. but not without noise


def test_too_many_flipped_codes_fail_though_each_is_explained():
    exact = torch.full((1000,), 2.5 - 1e-4, dtype=torch.float64)
    want = Grid(exact, exact.round(), torch.tensor(1e-4), torch.tensor(1.0))
    v = judge_grid(torch.full_like(exact, 3.0), want)
    assert v.rule == "codes"
    assert "1000 of 1000" in v.text


def test_exact_values_leave_no_freedom():
    want = Exact(torch.tensor([1.0, torch.nan, 3.0]))
    assert judge_exact(torch.tensor([1.0, torch.nan, 3.0]), want)
    v = judge_exact(torch.tensor([1.0, torch.nan, 4.0]), want)
    assert (v.rule, v.coordinate, v.got, v.wanted) == ("exact", (2,), 4.0, 3.0)
    assert judge_exact(torch.tensor([1, 2], dtype=torch.int32), Exact(torch.tensor([1, 2])))

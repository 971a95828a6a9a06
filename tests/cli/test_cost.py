"""The cost model against the DeepSeek-V4 technical report and the published configurations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from hal import cost
from hal.formats import SCHEMES, PackedWeight, prepare
from hal.models.deepseek_v4 import DeepseekV4
from hal.models.deepseek_v4.config_reader import load

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stored:
    dtype: str = "bfloat16"
    window: str = "v4_584"
    compressed: str = "v4_584"
    index: str = "index_mxfp4_68"
    linear: str = "fp8_block128"
    experts: str = "mxfp4"


PUBLISHED = Stored()

# context: GFLOPs of V3.2, Pro and Flash; GiB of cache of V3.2, Pro and Flash
TABLE = {
    4096: ((150.8, 122.7, 33.0), (0.183, 0.041, 0.028)),
    131072: ((277.7, 146.6, 43.7), (5.87, 0.636, 0.443)),
    1_000_000: ((1146.1, 310.3, 116.6), (44.8, 4.71, 3.29)),
    1048576: ((1194.6, 319.5, 120.7), (46.9, 4.94, 3.45)),
}


def share_of_flops(name: str, stored: Stored, context: int) -> float:
    work = cost.token_work(load(f"deepseek-v4-{name}"), stored, context)
    return cost.total_flops(work) / cost.total_flops(cost.V32.token_work(context))


def share_of_cache(name: str, stored: Stored, context: int) -> float:
    return cost.cache_bytes(load(f"deepseek-v4-{name}"), stored, context).total / cost.V32.cache_bytes(context)


@pytest.mark.parametrize("context", TABLE)
def test_flops_and_cache_at_every_context(context: int) -> None:
    flops, cache = TABLE[context]
    assert cost.total_flops(cost.V32.token_work(context)) / 1e9 == pytest.approx(flops[0], abs=0.05)
    assert cost.V32.cache_bytes(context) / 2**30 == pytest.approx(cache[0], rel=2e-3)
    for at, name in ((1, "pro"), (2, "flash")):
        config = load(f"deepseek-v4-{name}")
        assert cost.total_flops(cost.token_work(config, PUBLISHED, context)) / 1e9 == pytest.approx(flops[at], abs=0.05)
        assert cost.cache_bytes(config, PUBLISHED, context).total / 2**30 == pytest.approx(cache[at], abs=6e-3)


@pytest.mark.parametrize("context", [1_000_000, 1 << 20])
def test_headline_of_the_report(context: int) -> None:
    """27 % and 10 % of the FLOPs, rounded; 10 % and 7 % of the cache, cut."""
    flops = [round(100 * share_of_flops(name, PUBLISHED, context)) for name in ("pro", "flash")]
    cache = [int(100 * share_of_cache(name, PUBLISHED, context)) for name in ("pro", "flash")]
    assert (flops, cache) == ([27, 10], [10, 7])


def test_other_layouts_have_their_own_figures() -> None:
    fp8 = replace(PUBLISHED, index="index_fp8_132")
    ascend = replace(PUBLISHED, window="v4_640", compressed="v4_640", index="index_int8_130")
    assert 100 * share_of_flops("pro", fp8, 1 << 20) == pytest.approx(32.1, abs=0.05)
    assert 100 * share_of_flops("flash", fp8, 1 << 20) == pytest.approx(13.9, abs=0.05)
    assert 100 * share_of_cache("pro", fp8, 1 << 20) == pytest.approx(11.5, abs=0.05)
    assert 100 * share_of_cache("flash", fp8, 1 << 20) == pytest.approx(8.0, abs=0.05)
    assert 100 * share_of_cache("pro", ascend, 1 << 20) == pytest.approx(12.4, abs=0.05)
    assert 100 * share_of_cache("flash", ascend, 1 << 20) == pytest.approx(8.65, abs=0.01)


def test_bytes_per_token() -> None:
    assert cost.V32.cache_bytes(1) == 48068
    assert cost.cache_bytes(load("deepseek-v4-pro"), PUBLISHED, 1024).per_token == pytest.approx(5031.4, abs=0.1)
    assert cost.cache_bytes(load("deepseek-v4-flash"), PUBLISHED, 1024).per_token == pytest.approx(3514.25, abs=0.01)


def test_slope_is_the_growth() -> None:
    config = load("deepseek-v4-flash")
    less, more = (cost.cache_bytes(config, PUBLISHED, n) for n in (1 << 14, 1 << 18))
    assert (more.rows - less.rows) / (more.context - less.context) == pytest.approx(less.per_token)
    assert (more.window, more.state) == (less.window, less.state)


def test_padding_is_counted_by_whole_pages() -> None:
    config = replace(load("deepseek-v4-flash"), num_hidden_layers=1, compress_ratios=(128,), num_hash_layers=0)
    size = cost.cache_bytes(config, PUBLISHED, 128 * 65)  # 65 entries: two pages; the window: two full pages
    assert size.total + size.padding == 4 * 37440 + size.state
    assert size.state == 128 * 2 * 512 * 4


@pytest.mark.parametrize(
    ("name", "total", "with_mtp", "active"),
    [("flash", 284.3, 290.9, 13.3), ("pro", 1573.0, 1598.8, 48.9)],
)
def test_parameters(name: str, total: float, with_mtp: float, active: float) -> None:
    config = load(f"deepseek-v4-{name}")
    assert cost.parameters(config, mtp=False) / 1e9 == pytest.approx(total, abs=0.05)
    assert cost.parameters(config) / 1e9 == pytest.approx(with_mtp, abs=0.05)
    assert cost.active_parameters(config) / 1e9 == pytest.approx(active, abs=0.05)


def test_weight_bytes_follow_storage() -> None:
    fp4, fp8 = (cost.weight_bytes(load(f"deepseek-v4-{name}")) for name in ("flash", "flash-base"))
    routed = 44 * 256 * 3 * 4096 * 2048
    assert fp4["fp4"] == routed // 2 + routed // 32
    assert "fp4" not in fp8
    assert sum(fp8.values()) - sum(fp4.values()) == pytest.approx(routed * (1 + 128**-2 - 0.5 - 1 / 32))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_of_schemes_are_those_of_packed_weights(scheme: str) -> None:
    for shape in ((256, 512), (3, 130, 384)):
        assert cost.scheme_bytes(scheme, shape) == prepare(torch.ones(shape), scheme).bytes


@pytest.mark.parametrize("simulate", [True, False])
def test_held_bytes_are_those_of_a_model(simulate: bool) -> None:
    model = DeepseekV4.from_checkpoint(ROOT / "examples" / "tiny-v4", backend="cpu", simulate=simulate)
    held = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    for module in model.modules():
        held += sum(each.bytes for each in vars(module).values() if isinstance(each, PackedWeight))
    assert cost.held_bytes(model.config, model.numerics) == held


def test_int4_experts_stay_as_small_as_fp4_ones() -> None:
    config = load("deepseek-v4-pro")
    int8, int4 = (
        cost.held_bytes(config, replace(PUBLISHED, linear="w8a8_int8", experts=experts))
        for experts in ("w8a8_int8", "w4a8_int_256")
    )
    fp4 = cost.held_bytes(config, PUBLISHED)
    assert int4 < fp4 * 1.01
    assert int8 > fp4 * 1.8

"""Pallas pieces against the jax.numpy ones, in interpret mode, and their lowering for chips that are not here."""

from __future__ import annotations

import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from hal_jax import attention, experts, selection  # noqa: E402
from hal_jax.pallas import attend, scores  # noqa: E402
from hal_jax.pallas import experts as products  # noqa: E402
from jax import export  # noqa: E402


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def close(got, want, bound: float = 1e-5) -> None:  # type: ignore[no-untyped-def]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.shape == other.shape
        finite = jnp.isfinite(other)
        assert bool((jnp.isfinite(one) == finite).all())
        assert float(jnp.abs(jnp.where(finite, one - other, 0)).max()) <= bound * float(
            jnp.abs(jnp.where(finite, other, 0)).max()
        )


@pytest.mark.parametrize("own", [False, True])
def test_a_piece_of_attention(own: bool) -> None:
    queries, keys = normal(0, 4, 16, 128), normal(1, *((4, 143, 128) if own else (143, 128)))
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, (4, 143)).at[2].set(False)
    want = attention.softmax(queries, (keys, mask))
    close(attend.interpreted(queries, (keys, mask)), want)
    assert bool((want[0][2] == -jnp.inf).all())


def test_scores() -> None:
    arguments = normal(0, 3, 16, 128), normal(1, 3, 16), normal(2, 200, 128)
    close(scores.interpreted(*arguments), selection.scores(*arguments))


@pytest.mark.parametrize("activation", ["none", "e4m3_128", "int8_token"])
def test_some_rows_of_an_expert(activation: str) -> None:
    x, factor, w13, w2 = normal(0, 8, 256), normal(1, 8), normal(2, 384, 256) / 16, normal(3, 256, 192) / 14
    arguments = x, factor, w13, w2, jnp.float32(1.5), "bfloat16", activation
    # a value at the middle between two codes may fall to either side
    close(products.interpreted(*arguments), experts.one_expert(*arguments), 1e-5 if activation == "none" else 0.05)


PIECES = {
    "attend": (
        (lambda on: lambda q, k, m: on(q, (k, m)), (attend.softmax, attend.on_gpu)),
        (((16, 64, 512), jnp.float32), ((512, 512), jnp.float32), ((16, 512), jnp.bool_)),
    ),
    "attend, listed": (
        (lambda on: lambda q, k, m: on(q, (k, m)), (attend.softmax, attend.on_gpu)),
        (((16, 64, 512), jnp.float32), ((16, 512, 512), jnp.float32), ((16, 512), jnp.bool_)),
    ),
    "scores": (
        (lambda on: on, (scores.scores, scores.on_gpu)),
        (((16, 64, 128), jnp.float32), ((16, 64), jnp.float32), ((4096, 128), jnp.float32)),
    ),
    "experts": (
        (
            lambda on: lambda x, f, a, b, c: on(x, f, a, b, c, "bfloat16", "e4m3_128"),
            (products.one_expert, products.on_gpu),
        ),
        (
            ((64, 4096), jnp.float32),
            ((64,), jnp.float32),
            ((4096, 4096), jnp.float32),
            ((4096, 2048), jnp.float32),
            ((), jnp.float32),
        ),
    ),
}
"""At the published model's sizes."""


UNPROMISED = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
"""What jax does not promise to run after it was stored; nothing is stored here."""


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", PIECES)
def test_a_piece_lowers(name: str, platform: str) -> None:
    (called, (on_tpu, on_gpu)), shapes = PIECES[name]
    function = called(on_tpu if platform == "tpu" else on_gpu)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    lowered = export.export(jax.jit(function), platforms=[platform], disabled_checks=UNPROMISED)(*arguments)
    text = lowered.mlir_module()
    assert ("tpu_custom_call" if platform == "tpu" else "__gpu$xla.gpu.triton") in text

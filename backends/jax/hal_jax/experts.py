"""The mixture of experts: `moe.route`, `moe.dispatch`, `moe.experts`, `moe.combine`, `moe.ffn`.

Rows sorted by expert become tiles of equally many rows, each of one expert, so that shapes depend on buckets only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax
from torch import Tensor

from hal.dispatched import Dispatched
from hal.distributed import Exchange, Group
from hal.errors import ContractError
from hal.formats import PackedWeight
from hal_jax.exchange import array, bucket, tensor
from hal_jax.matmul import Stored, quantize, stored
from hal_jax.numbers import decode_rows, decode_weight, product, rounded, simulated, wide

__all__ = ["combine", "dispatch", "experts", "ffn", "route"]

_EPSILON = 1e-20  # keeps vanishing scores from dividing by zero; as transformers and TileKernels
_ROWS = 64  # of a tile, at most

Expert = Callable[[Array, Array, Array, Array, Array, str, str], Array]
"""Rows [n, hidden], routing weights [n], w13, w2, clamp, model dtype, activation -> rows [n, hidden]."""

_SCORES = {
    "sqrtsoftplus": lambda logits: jnp.sqrt(jnp.logaddexp(logits, 0.0)),
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}


def route(
    logits: Tensor,
    bias: Tensor | None,
    token_ids: Tensor | None,
    table: Tensor | None,
    *,
    top_k: int,
    scoring: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`moe.route`: weights float32 and expert ids int32, both [tokens, top_k], best first."""
    count = bucket(len(logits))
    chosen = None if table is None or token_ids is None else array(table[token_ids], count)
    weights, ids = _route(
        array(logits, count),
        array(bias) if bias is not None else None,
        chosen,
        jnp.float32(scale),
        top_k=top_k,
        scoring=scoring,
    )
    return tensor(weights, len(logits)), tensor(ids, len(logits))


@partial(jax.jit, static_argnames=("top_k", "scoring"))
def _route(
    logits: Array, bias: Array | None, chosen: Array | None, scale: Array, *, top_k: int, scoring: str
) -> tuple[Array, Array]:
    scores = _SCORES[scoring](logits)
    if chosen is None:
        keys = scores if bias is None else scores + bias
        chosen = lax.top_k(jnp.where(keys == 0, 0.0, keys), top_k)[1]  # -0 is below 0 in XLA's order
    weights = jnp.take_along_axis(scores, chosen, -1)
    return weights / (weights.sum(-1, keepdims=True) + _EPSILON) * scale, chosen + 0


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: rows sorted by expert, quantised; over a group by hal's own exchange."""
    tokens, top_k = expert_ids.shape
    used = int((expert_ids >= 0).sum())
    codes, scales = (x, None) if activation == "none" else quantize(x, activation=activation)
    padded = torch.full((bucket(tokens), top_k), -1, dtype=torch.int32)
    padded[:tokens] = expert_ids
    order, counts, index = (tensor(out) for out in _sorted(array(padded), experts=experts))
    order, counts, index = order[:used].long(), counts.long(), index[:tokens].long()
    token = order // max(top_k, 1)
    rows, factors, way = codes[token], weights.flatten()[order], None
    scales = None if scales is None else scales[token]
    if group is not None:
        way = Exchange.plan(group, counts)
        rows, factors = way.forward(rows), way.forward(factors)
        scales = None if scales is None else way.forward(scales)
        counts = way.counts
    return Dispatched(rows, scales, activation, factors, counts, index, tokens, top_k, x.dtype, route=way)


@partial(jax.jit, static_argnames="experts")
def _sorted(ids: Array, *, experts: int) -> tuple[Array, Array, Array]:
    """Slots in order of their expert, used ones first; rows of each expert; the row of each slot or -1."""
    flat = jnp.where(ids < 0, experts, ids).reshape(-1)
    order = jnp.argsort(flat, stable=True)
    rows = jnp.zeros_like(flat).at[order].set(jnp.arange(flat.size, dtype=flat.dtype))
    counts = jnp.bincount(flat, length=experts + 1)[:experts]
    return order, counts, jnp.where(flat < experts, rows, -1).reshape(ids.shape)


def experts(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts`: [rows, hidden] in the model's dtype; padding rows are zero."""
    return run_experts(dispatched, w13, w2, clamp=clamp, activation=activation, expert=one_expert)


def run_experts(
    dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str, expert: Expert
) -> Tensor:
    """`experts` with a given pair of products: the one below, or Pallas's."""
    counts, offsets = dispatched.counts.tolist(), dispatched.offsets().tolist()
    number = len(dispatched.rows)
    size = min(_ROWS, bucket(max(counts, default=0)))
    tiles = [(e, o + i, min(size, c - i)) for e, (o, c) in enumerate(zip(offsets, counts, strict=True))
             for i in range(0, c, size)]  # fmt: skip
    owner = torch.zeros(bucket(len(tiles)), dtype=torch.int32)
    rows = torch.full((len(owner), size), bucket(number), dtype=torch.int32)
    for tile, (number_of, first, count) in enumerate(tiles):
        owner[tile] = number_of
        rows[tile, :count] = torch.arange(first, first + count, dtype=torch.int32)
    length = bucket(number)
    done = _experts(
        array(dispatched.rows, length),
        array(dispatched.scales, length) if dispatched.scales is not None else None,
        array(dispatched.weights, length),
        array(owner),
        array(rows),
        stored(w13),
        stored(w2),
        jnp.float32(clamp),
        schemes=(w13.scheme, w2.scheme),
        sent=dispatched.activation,
        activation=activation,
        dtype=str(dispatched.dtype).removeprefix("torch."),
        expert=expert,
    )
    return tensor(done, number)


@partial(jax.jit, static_argnames=("schemes", "sent", "activation", "dtype", "expert"))
def _experts(
    codes: Array,
    scales: Array | None,
    weights: Array,
    owner: Array,
    rows: Array,
    w13: Stored,
    w2: Stored,
    clamp: Array,
    *,
    schemes: tuple[str, str],
    sent: str,
    activation: str,
    dtype: str,
    expert: Expert,
) -> Array:
    def tile(at: tuple[Array, Array]) -> Array:
        number, row = at
        within = jnp.minimum(row, codes.shape[0] - 1)
        x = decode_rows(codes[within], None if scales is None else scales[within], sent)
        x = jnp.where((row < codes.shape[0])[:, None], x, 0.0)
        factor = jnp.where(row < codes.shape[0], weights[within], 0.0)
        up, down = (
            decode_weight(weight.codes[number], None if weight.scales is None else weight.scales[number], scheme)
            for weight, scheme in zip((w13, w2), schemes, strict=True)
        )
        return expert(x, factor, up, down, clamp, dtype, activation).astype(dtype)

    done = lax.map(tile, (owner, rows))
    out = jnp.zeros((codes.shape[0], done.shape[-1]), done.dtype)
    return out.at[rows.reshape(-1)].set(done.reshape(-1, done.shape[-1]), mode="drop")


def one_expert(x: Array, factor: Array, w13: Array, w2: Array, clamp: Array, dtype: str, activation: str) -> Array:
    """Some rows of one expert."""
    gate, up = jnp.split(product(x, w13), 2, -1)
    return product(between(gate, up, factor, clamp, dtype, activation), w2)


def between(gate: Array, up: Array, factor: Array, clamp: Array, dtype: str, activation: str) -> Array:
    """What the second product gets: the clamped SwiGLU times the routing weight, rounded, quantised."""
    inner = jax.nn.silu(jnp.minimum(gate, clamp)) * jnp.clip(up, -clamp, clamp) * factor[:, None]
    return simulated(rounded(inner, dtype), activation)


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: a token's rows summed in float32 in slot order, then the residual, rounded once."""
    if dispatched.route is not None:
        if not isinstance(dispatched.route, Exchange):
            raise ContractError(
                f"rows were dispatched with a way back of type {type(dispatched.route).__name__}",
                where="moe.combine of jax",
                fix="take dispatch and combine of one backend",
            )
        rows = dispatched.route.backward(rows)
    count = bucket(dispatched.tokens)
    padded = torch.full((count, dispatched.top_k), -1, dtype=torch.int32)
    padded[: dispatched.tokens] = dispatched.index
    extra = array(residual, count) if residual is not None else None
    return tensor(_combine(array(rows, bucket(len(rows))), array(padded), extra), dispatched.tokens)


@jax.jit
def _combine(rows: Array, index: Array, residual: Array | None) -> Array:
    total = jnp.zeros((index.shape[0], rows.shape[1]))
    for slot in index.T:
        total = total + jnp.where((slot >= 0)[:, None], wide(rows[jnp.maximum(slot, 0)]), 0.0)
    return (total if residual is None else total + wide(residual)).astype(rows.dtype)


def ffn(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w13: PackedWeight,
    w2: PackedWeight,
    residual: Tensor | None,
    group: Group | None,
    *,
    experts: int,
    clamp: float,
    activation: str,
) -> Tensor:
    """`moe.ffn`: the three in a row."""
    sent = dispatch(x, expert_ids, weights, group, experts=experts, activation=activation)
    return combine(_run(sent, w13, w2, clamp=clamp, activation=activation), sent, residual)


_run = experts  # `ffn` has an attribute of this name

"""The mixture of experts in JAX: a scan over the experts that have rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax
from torch import Tensor

from hal.dispatched import Dispatched
from hal.distributed import Exchange
from hal_jax import numbers
from hal_jax.exchange import bucket, like, padded, to_jax, to_torch
from hal_jax.matmul import codes_of

if TYPE_CHECKING:
    from hal.distributed import Group
    from hal.formats import PackedWeight

EPSILON = 1e-20


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
    """`moe.route`: logits[tokens, experts] -> weights[tokens, top_k] float32, expert_ids[tokens, top_k] int32."""
    tokens, size = len(logits), bucket(len(logits))
    given = table is not None and token_ids is not None
    weights, ids = _route(
        padded(logits.float(), size),
        None if bias is None else to_jax(bias),
        padded(table[token_ids], size) if given else None,
        top_k=top_k,
        scoring=scoring,
        scale=scale,
    )
    return to_torch(weights)[:tokens], to_torch(ids)[:tokens]


@partial(jax.jit, static_argnames=("top_k", "scoring", "scale"))
def _route(
    logits: Array, bias: Array | None, given: Array | None, *, top_k: int, scoring: str, scale: float
) -> tuple[Array, Array]:
    if scoring == "sqrtsoftplus":
        scores = jnp.sqrt(jnp.logaddexp(logits, 0.0))
    else:
        scores = jax.nn.sigmoid(logits) if scoring == "sigmoid" else jax.nn.softmax(logits, -1)
    keys = scores if bias is None else scores + bias
    ids = given if given is not None else jnp.argsort(-keys, -1, stable=True)[:, :top_k].astype(jnp.int32)
    weights = jnp.take_along_axis(scores, ids, 1)
    return weights / (weights.sum(-1, keepdims=True) + EPSILON) * scale, ids


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: x[tokens, hidden] -> rows sorted by expert, quantised once; over a group they travel in torch.

    Rows of unused slots lie behind those of all experts.
    """
    tokens, top_k = expert_ids.shape
    size = bucket(tokens)
    codes, scales, place, order, counts = _dispatch(
        padded(x, size), padded(expert_ids, size, -1), experts=experts, activation=activation
    )
    used = to_torch(counts, torch.int64)
    back = to_torch(place, torch.int64)[:tokens]
    kept = int(used.sum())
    sent = to_torch(order, torch.int64)[:kept]
    rows, factors = to_torch(codes)[sent // max(1, top_k)], weights.flatten()[sent]
    rows = rows.view(torch.float8_e4m3fn) if activation.startswith("e4m3") else rows
    taken = None if scales is None else to_torch(scales)[sent // max(1, top_k)]
    if taken is not None and activation != "int8_token":
        taken = taken.view(torch.float8_e8m0fnu)
    route = None
    if group is not None:
        route = Exchange.plan(group, used)
        rows, factors = route.forward(rows), route.forward(factors)
        taken = None if taken is None else route.forward(taken)
        used = route.counts
    return Dispatched(rows, taken, activation, factors, used, back, tokens, top_k, x.dtype, route=route)


@partial(jax.jit, static_argnames=("experts", "activation"))
def _dispatch(
    x: Array, ids: Array, *, experts: int, activation: str
) -> tuple[Array, Array | None, Array, Array, Array]:
    """Codes and scales per token; each slot's row, the slots in the order of rows, and rows per expert."""
    flat = ids.reshape(-1)
    keys = jnp.where(flat >= 0, flat, experts)
    order = jnp.argsort(keys, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    counts = jnp.zeros(experts + 1, jnp.int32).at[keys].add(1)[:experts]
    back = jnp.where(flat >= 0, place, -1).reshape(ids.shape)
    if activation == "none":
        return x, None, back, order, counts
    return *numbers.quantize(x.astype(jnp.float32), activation), back, order, counts


def experts(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts`: rows of every local expert through it, [rows, hidden] in the model's dtype."""
    counts, starts = dispatched.counts.cpu(), dispatched.offsets().cpu()
    busy = counts.nonzero().squeeze(1)
    most, rows = bucket(int(counts.max()) if len(counts) else 0), len(dispatched.rows)
    size, many = bucket(rows) + most, bucket(len(busy))
    out = _experts(
        padded(dispatched.rows, size),
        None if dispatched.scales is None else padded(dispatched.scales.contiguous(), size),
        padded(dispatched.weights, size),
        codes_of(w13),
        codes_of(w2),
        padded(busy, many),
        padded(starts[busy], many),
        padded(counts[busy], many),
        schemes=(w13.scheme, w2.scheme),
        source=dispatched.activation,
        activation=activation,
        clamp=clamp,
        most=most,
        dtype=like(dispatched.dtype),
    )
    return to_torch(out)[:rows]


@partial(jax.jit, static_argnames=("schemes", "source", "activation", "clamp", "most", "dtype"))
def _experts(
    rows: Array,
    scales: Array | None,
    weights: Array,
    w13: tuple[Array, Array | None],
    w2: tuple[Array, Array | None],
    busy: Array,
    starts: Array,
    counts: Array,
    *,
    schemes: tuple[str, str],
    source: str,
    activation: str,
    clamp: float,
    most: int,
    dtype: type,
) -> Array:
    hidden = w2[0].shape[1]

    def one(out: Array, job: tuple[Array, Array, Array]) -> tuple[Array, None]:
        expert, start, count = job

        def at(array: Array) -> Array:
            return lax.dynamic_slice_in_dim(array, start, most)

        mine = (jnp.arange(most) < count)[:, None]
        x = numbers.dequantize(at(rows), None if scales is None else at(scales), source)
        x = jnp.where(mine, x, 0.0)
        both = jnp.matmul(x, _of(w13, expert, schemes[0]).T, precision="highest")
        inner = gated(both, at(weights), clamp, dtype)
        y = jnp.matmul(numbers.simulate(inner, activation), _of(w2, expert, schemes[1]).T, precision="highest")
        y = jnp.where(mine, numbers.rounded(y, dtype).astype(dtype), at(out))
        return lax.dynamic_update_slice_in_dim(out, y, start, 0), None

    blank = jnp.zeros((rows.shape[0], hidden), dtype)
    return lax.scan(one, blank, (busy, starts, counts))[0]


def _of(weight: tuple[Array, Array | None], expert: Array, scheme: str) -> Array:
    codes, scales = weight
    return numbers.matrix(codes[expert], None if scales is None else scales[expert], scheme)


def gated(both: Array, weights: Array, clamp: float, dtype: type) -> Array:
    """silu(gate) * up * weight, clamped, in float32 and rounded once: `both[rows, 2 * inter]` -> `[rows, inter]`."""
    gate, up = jnp.split(both, 2, -1)
    gate, up = jnp.minimum(gate, clamp), jnp.clip(up, -clamp, clamp)
    return numbers.rounded(jax.nn.silu(gate) * up * weights[:, None], dtype)


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: a token's rows summed in float32 in slot order, then `residual`, rounded once.

    Raises:
        TypeError: another backend's dispatch sent the rows out.
    """
    if dispatched.route is not None:
        if not isinstance(dispatched.route, Exchange):
            raise TypeError(f"rows went out by {type(dispatched.route).__name__}; only its own combine returns them")
        rows = dispatched.route.backward(rows)
    tokens, size = dispatched.tokens, bucket(dispatched.tokens)
    y = _combine(
        padded(rows, bucket(len(rows))),
        padded(dispatched.index, size, -1),
        None if residual is None else padded(residual, size),
    )
    return to_torch(y)[:tokens]


@jax.jit
def _combine(rows: Array, index: Array, residual: Array | None) -> Array:
    total = jnp.zeros((index.shape[0], rows.shape[1]), jnp.float32)
    for slot in range(index.shape[1]):
        which = index[:, slot]
        total += jnp.where((which >= 0)[:, None], rows[jnp.maximum(which, 0)].astype(jnp.float32), 0.0)
    total = total if residual is None else total + residual.astype(jnp.float32)
    return numbers.rounded(total, rows.dtype).astype(rows.dtype)

"""What the attention operators should return. Their reference runs in float64, and again on squares for envelopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.numerics.arguments import blank, exact
from hal.numerics.codes import Exact, Grid
from hal.numerics.expectation import Part, output
from hal.numerics.noise import index_scores_noise, matmul_noise, pool_noise, softmax_sum
from hal.numerics.precision import Precision, declared
from hal.numerics.quantisers import grid_step, row_noise
from hal.numerics.rounding import rounded
from hal.numerics.selection import Selection
from hal.numerics.sums import Sums
from hal.reference.selection import index_scores as _index_scores

__all__ = ["attend", "compress", "compress_pool", "index_scores", "select", "store"]

Reference = Callable[..., Any]
_GATHERED = 1 << 23  # float64 elements of rows gathered at a time
_BYSTANDERS = 1 << 14  # rows of a cache that are looked at though nobody wrote them


def attend(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`attn.attend`: out and lse."""
    q, window, compressed, rows, sink, batch = arguments
    precision = precision or declared(q.dtype)
    out, lse = reference(
        q.double(), window, compressed, rows, None if sink is None else sink.double(), batch, **attributes
    )
    base_out, base_lse = reference(*arguments, **attributes)
    out_noise, one_sided, lse_noise = torch.zeros_like(out), torch.zeros_like(out), torch.zeros_like(lse)
    wanted = _seen(window, compressed, rows, batch, **attributes)
    widest = max((physical.shape[1] for _, physical in wanted), default=1)
    step = max(1, _GATHERED // max(widest * q.shape[-1], 1))
    for t in range(0, batch.tokens, step):
        parts = [(cache, physical[t : t + step]) for cache, physical in wanted]
        gathered = torch.cat([cache.read(p.flatten(), torch.float64).unflatten(0, p.shape) for cache, p in parts], 1)
        seen = torch.cat([p >= 0 for _, p in parts], 1)
        found = softmax_sum(q[t : t + step], gathered, seen, sink, attributes["scale"], precision)
        out_noise[t : t + step], one_sided[t : t + step] = found.out_noise, found.out_one_sided
        lse_noise[t : t + step] = found.lse_noise
    return [
        output(0, "out", Sums(out, out_noise, base_out.dtype, base_out, one_sided)),
        output(1, "lse", Sums(lse, lse_noise, base_lse.dtype, base_lse, lse_noise)),
    ]


def _seen(
    window: KVCache,
    compressed: KVCache | None,
    rows: Tensor | None,
    batch: Batch,
    window_size: int,
    ratio: int,
    scale: float,
) -> list[tuple[KVCache, Tensor]]:
    """Physical rows [tokens, n] that each token attends to, -1 where there is none."""
    slots = batch.slots[batch.request][:, None]

    def physical(cache: KVCache, wanted: Tensor) -> Tensor:
        return cache.physical(slots.expand_as(wanted).flatten(), wanted.flatten()).view_as(wanted)

    recent = batch.positions[:, None] - torch.arange(window_size)
    found = [(window, physical(window, recent.clamp_min(-1)))]
    if compressed is not None and rows is not None:
        found.append((compressed, physical(compressed, rows)))
    elif compressed is not None and ratio:
        visible = batch.visible(ratio)[:, None]
        entry = torch.arange(int(visible.max()) if batch.tokens else 0)
        found.append((compressed, physical(compressed, torch.where(entry < visible, entry, -1))))
    return found


def compress_pool(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`attn.compress_pool`: entries, and the rows of the state that later windows need."""
    kv, score, ape, batch, state = arguments
    precision = precision or declared(torch.float64 if kv.dtype == torch.float64 else torch.float32)
    after = exact(state)
    entries = reference(kv.double(), score.double(), ape.double(), batch, after, **attributes)
    base = reference(kv, score, ape, batch, StateCache(state.tensor.clone()), **attributes)
    noise = _pooled_noise(
        reference, exact(arguments[0]), score.double(), ape.double(), batch, exact(state), attributes, precision
    )
    still = torch.zeros_like(after.tensor)
    return [
        output(0, "entries", Sums(entries, noise, base.dtype, base, noise)),
        *_state(4, state, after, still, batch, attributes["ratio"], attributes["overlap"]),
    ]


def _pooled_noise(
    reference: Reference,
    kv: Tensor,
    score: Tensor,
    ape: Tensor,
    batch: Batch,
    state: StateCache,
    attributes: dict[str, Any],
    precision: Precision,
) -> Tensor:
    """The pooling run on squares of values with doubled scores, and on magnitudes of scores."""

    def pooled(values: Tensor, old: Tensor, times: int) -> Tensor:
        tensor = torch.cat([old, times * state.score], -1)
        found: Tensor = reference(values, times * score, times * ape, batch, StateCache(tensor), **attributes)
        return found

    full = score + ape[batch.positions % attributes["ratio"]]
    squares = pooled(kv**2, state.kv**2, 2).sqrt()
    slots = attributes["ratio"] * (1 + attributes["overlap"])
    return pool_noise(squares, pooled(full.abs(), state.score.abs(), 1), slots, precision)


def _state(
    index: int, before: StateCache, after: StateCache, noise: Tensor, batch: Batch, ratio: int, overlap: bool
) -> list[Part]:
    """Rows of tokens whose window is incomplete, or that the next window overlaps; states of other slots are equal."""
    slots, rows = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for start, length, slot in zip(batch.starts, batch.lengths, batch.slots.tolist(), strict=True):
        end = start + length
        live = torch.arange(max(0, end // ratio * ratio - ratio * overlap), end)
        slots.append(torch.full_like(live, slot))
        rows.append(live % before.tensor.shape[1])
    slot, row = torch.cat(slots), torch.cat(rows)
    others = torch.ones(before.tensor.shape[0], dtype=torch.bool)
    others[batch.slots] = False
    want = Sums(after.tensor[slot, row], noise[slot, row], before.tensor.dtype, one_sided=noise[slot, row])
    return [
        Part("state", lambda _, after: after[index].tensor.to("cpu")[slot, row], want),
        Part("other states", lambda _, after: after[index].tensor.to("cpu")[others], Exact(before.tensor[others])),
    ]


def store(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`attn.store`: the rows it wrote, and that it wrote no other."""
    values, norm, rope, positions, slots, cache = arguments
    precision = precision or declared(values.dtype)
    after, places = blank(cache, slots)
    reference(values.double(), None if norm is None else norm.double(), rope, positions, places, after, **attributes)
    rows = after.read(places, torch.float64)
    noise = row_noise(rows, rope.dim, attributes["hadamard"], values.dtype, precision)
    return _rows(5, cache, rows, noise, slots)


def _rows(index: int, before: KVCache, rows: Tensor, noise: Tensor, physical: Tensor) -> list[Part]:
    """Written rows are codes of values near `rows`; rows beside them, and some far away, are what they were."""
    written = physical >= 0
    rows, noise, places = rows[written], noise[written], physical[written]
    total = before.pages.shape[0] * before.layout.block_size
    far = torch.arange(0, total, max(1, total // _BYSTANDERS))
    rest = torch.cat([places - 1, places + 1, far]).clamp(0, max(total - 1, 0)).unique()
    rest = rest[~torch.isin(rest, places)]
    moving = before.layout.index_activation == "int8_token"
    want = Grid(rows, before.layout.quantize_rows(rows, torch.float64), noise, moving=moving)

    def read(cache: KVCache, wanted: Tensor) -> Tensor:
        return cache.read(
            wanted.to(cache.pages.device), torch.float64 if cache.pages.device.type == "cpu" else torch.float32
        )

    def others(cache: KVCache) -> Tensor:
        """In one dtype wherever the cache is: a device without float64 rounds scales that are no powers of two."""
        wide = torch.float64 if cache.pages.dtype == torch.float64 else torch.float32
        return cache.read(rest.to(cache.pages.device), wide).to("cpu", torch.float64)

    return [
        Part("cache", lambda _, after: read(after[index], places), want),
        Part("other rows", lambda _, after: others(after[index]), Exact(others(before))),
    ]


def compress(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`attn.compress`: the rows it stored and the state it leaves."""
    x, wkv, wgate, ape, norm, rope, batch, state, cache = arguments
    precision = precision or declared(x.dtype)
    ratio, overlap = attributes["ratio"], attributes["overlap"]
    entries = batch.entries(ratio)
    physical = cache.physical(batch.slots[entries.request], entries.index)
    stored, places = blank(cache, physical)

    def run(values: Tensor, scores: Tensor) -> tuple[StateCache, Tensor]:
        """The whole operator on given projections, which its identity weights leave alone."""
        end, eye = exact(state), torch.eye(2 * values.shape[1], dtype=torch.float64)
        both = torch.cat([values, scores], -1)
        reference(both, *eye.chunk(2), ape.double(), norm.double(), rope, batch, end, stored, **attributes)
        return end, stored.read(places, torch.float64)

    kv, score = x.double() @ wkv.double().mT, x.double() @ wgate.double().mT
    kv_noise, score_noise = (matmul_noise(x, w, y, precision) for w, y in ((wkv, kv), (wgate, score)))
    after, rows = run(kv, score)
    # How the projections' noise moves a row: once, at random, averaged over the row.
    rng = torch.Generator().manual_seed(0)
    shaken = [
        y + e * torch.randn(y.shape, generator=rng, dtype=torch.float64)
        for y, e in ((kv, kv_noise), (score, score_noise))
    ]
    moved = (run(*shaken)[1] - rows).square().mean(-1, keepdim=True).sqrt()
    noise = 2 * moved + row_noise(rows, rope.dim, attributes["hadamard"], x.dtype, precision)
    state_noise = torch.zeros_like(after.tensor)
    place = batch.positions % after.tensor.shape[1]
    full = score + ape.double()[batch.positions % ratio]
    state_noise[batch.slots[batch.request], place] = torch.cat(
        [kv_noise, score_noise + precision.unit * full.abs()], -1
    )
    return [*_rows(8, cache, rows, noise, physical), *_state(7, state, after, state_noise, batch, ratio, overlap)]


def index_scores(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`attn.index_scores`."""
    q, weights, batch, cache = arguments
    precision = precision or declared(q.dtype)
    scores = reference(q.double(), weights.double(), batch, cache, **attributes)
    base = reference(*arguments, **attributes)
    noise = _score_noise(q, None, weights, batch, cache, scores, attributes["scale"], precision)
    return [output(0, "scores", Sums(scores, noise, base.dtype, base, noise))]


def _score_noise(
    q: Tensor,
    q_noise: Tensor | None,
    weights: Tensor,
    batch: Batch,
    cache: KVCache,
    scores: Tensor,
    scale: float,
    precision: Precision,
) -> Tensor:
    """Request by request: its keys, its tokens."""
    noise = torch.zeros_like(scores)
    entry = torch.arange(scores.shape[1])
    for r, slot in enumerate(batch.slots.tolist()):
        tokens = (batch.request == r).nonzero().flatten()
        seen = scores[tokens] > -torch.inf
        if len(tokens) and bool(seen.any()):
            keys = cache.read(cache.physical(torch.full_like(entry, slot), entry), torch.float64)
            keys = torch.where(seen.any(0)[:, None], keys, 0.0)
            own = None if q_noise is None else q_noise[tokens]
            noise[tokens] = index_scores_noise(q[tokens], keys, weights[tokens], scale, precision, own)
    return noise


def select(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`attn.select`: chosen rows, by the scores of queries that were rotated and quantised like the cache's rows."""
    q, weights, rope, batch, cache = arguments
    precision = precision or declared(q.dtype)
    seen: dict[str, Tensor] = {}

    def scoring(ready: Tensor, factors: Tensor, *rest: Any) -> Tensor:
        """The composite's part, which also keeps what it was given."""
        found = _index_scores(ready, factors, *rest, ratio=attributes["ratio"], scale=attributes["scale"])
        seen.update(q=ready, scores=found)
        return found

    parts = SimpleNamespace(index_scores=scoring)
    reference(q.double(), weights.double(), rope, batch, cache, **attributes, parts=parts)
    noise = row_noise(seen["q"], rope.dim, attributes["hadamard"], q.dtype, precision)
    if cache.layout.index_activation != "none":
        noise = rounded(noise, grid_step(seen["q"], cache.layout.index_activation))
    spread = _score_noise(seen["q"], noise, weights, batch, cache, seen["scores"], attributes["scale"], precision)
    return [output(0, "rows", Selection(seen["scores"], spread, attributes["top_k"]))]

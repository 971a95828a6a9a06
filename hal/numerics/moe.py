"""What the mixture-of-experts operators should return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.dispatched import Dispatched
from hal.formats import PackedWeight, simulate
from hal.numerics.arguments import dequantised, exact
from hal.numerics.codes import Exact
from hal.numerics.expectation import Part, output
from hal.numerics.experts import Rows, expert_rows, router
from hal.numerics.matmul import codes
from hal.numerics.precision import Precision, declared
from hal.numerics.rounding import relative_rounding
from hal.numerics.selection import Selection
from hal.numerics.sums import Sums

__all__ = ["combine", "dispatch", "experts", "ffn", "route"]

Reference = Callable[..., Any]


def route(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`moe.route`: expert ids, and the weights of those ids."""
    logits, bias, token_ids, table = arguments
    precision = precision or declared(logits.dtype)
    top_k, scoring, scale = attributes["top_k"], attributes["scoring"], attributes["scale"]
    by_table = token_ids is not None and table is not None

    def found(outputs: Sequence[Any]) -> tuple[Sums, Selection]:
        if len(outputs) < 2 or outputs[1].shape != (logits.shape[0], top_k):
            raise LookupError("weights and expert ids [tokens, top_k] were expected")
        return router(logits, bias, outputs[1].to("cpu"), top_k, scoring, scale, precision)

    ids: Any = Exact(table[token_ids]) if by_table else lambda outputs: found(outputs)[1]
    return [output(0, "weights", lambda outputs: found(outputs)[0]), output(1, "expert_ids", ids)]


def dispatch(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`moe.dispatch`: every used slot of a token finds its quantised row among its expert's rows, once."""
    x, expert_ids, weights, group = arguments
    wanted = reference(x, expert_ids, weights, group, **attributes)
    used = wanted.index >= 0
    token = torch.arange(x.shape[0])[:, None].expand_as(wanted.index)[used]

    def own(outputs: Sequence[Any]) -> tuple[Dispatched, Tensor]:
        got: Dispatched = outputs[0]
        index = got.index.to("cpu")
        if index.shape != used.shape or not torch.equal(index >= 0, used):
            raise ValueError("the way back has other used slots than the routing")
        return got, index[used]

    def rows(outputs: Sequence[Any], _: Sequence[Any]) -> Tensor:
        got, index = own(outputs)
        values = dequantised(got).to("cpu")
        if len(index) and int(index.max()) >= len(values):
            raise ValueError("the way back points behind the last row")
        return values[index]

    def segments(outputs: Sequence[Any], _: Sequence[Any]) -> Tensor:
        """Number of each used slot's row within its expert's segment, sorted: 0, 1, 2 .. for every expert."""
        got, index = own(outputs)
        expert = expert_ids.long()[used]
        return _ranks(index - got.offsets().to("cpu")[expert], expert)

    ids = expert_ids.long()[used]
    want = Exact(x[token].double()) if wanted.scales is None else codes(x[token], wanted.activation)
    return [
        Part("rows", rows, want),
        Part("counts", lambda outputs, _: outputs[0].counts, Exact(wanted.counts)),
        Part("segments", segments, Exact(_ranks(wanted.index[used] - wanted.offsets()[ids], ids))),
        Part("weights", lambda outputs, _: outputs[0].weights.to("cpu")[own(outputs)[1]], Exact(weights[used])),
    ]


def _ranks(place: Tensor, expert: Tensor) -> Tensor:
    """`place` sorted within each expert, experts in order: [used slots, 2]."""
    order = torch.argsort(place, stable=True)
    order = order[torch.argsort(expert[order], stable=True)]
    return torch.stack([expert[order], place[order]], -1)


def experts(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`moe.experts`: rows of every expert; padding rows may hold anything."""
    dispatched, w13, w2 = arguments
    base = reference(*arguments, **attributes)
    precision = precision or declared(base.dtype, w13.scheme)
    values = dequantised(dispatched)
    picked, wanted = [torch.empty(0, dtype=torch.int64)], []
    for e, (start, count) in enumerate(zip(dispatched.offsets().tolist(), dispatched.counts.tolist(), strict=True)):
        if count:
            rows = torch.arange(start, start + count)
            picked.append(rows)
            wanted.append(
                _expert(values[rows], dispatched.weights[rows], w13, w2, e, attributes, base.dtype, precision)
            )
    place = torch.cat(picked)

    def find(outputs: Sequence[Any], _: Sequence[Any]) -> Tensor:
        if not outputs or outputs[0].shape != base.shape:
            raise LookupError(f"rows of shape {list(base.shape)} were expected")
        found: Tensor = outputs[0].to("cpu")[place]
        return found

    return [Part("rows", find, _sums(wanted, base[place]))]


def _expert(
    x: Tensor,
    factor: Tensor,
    w13: PackedWeight,
    w2: PackedWeight,
    e: int,
    attributes: dict[str, Any],
    dtype: torch.dtype,
    precision: Precision,
) -> Rows:
    up, down = w13[e].dequantize(torch.float64), w2[e].dequantize(torch.float64)
    return expert_rows(x, factor, up, down, attributes["clamp"], attributes["activation"], dtype, precision)


def _sums(rows: list[Rows], base: Tensor) -> Sums:
    if not rows:
        empty = torch.zeros_like(base, dtype=torch.float64)
        return Sums(empty, empty, base.dtype, base)
    reference, noise, one_sided, jump = (
        torch.cat([getattr(part, name) for part in rows]) for name in ("reference", "noise", "one_sided", "jump")
    )
    return Sums(reference, noise, base.dtype, base, one_sided, jump)


def combine(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`moe.combine`."""
    rows, dispatched, residual = arguments
    precision = precision or declared(rows.dtype)
    total = reference(*(exact(argument) for argument in arguments), **attributes)
    base = reference(*arguments, **attributes)
    squares = [None if x is None else x.double() ** 2 for x in (rows, residual)]
    size = reference(squares[0], exact(dispatched), squares[1], **attributes).sqrt()
    noise = precision.sums(dispatched.top_k + 1, size, total)
    return [output(0, "y", Sums(total, noise, base.dtype, base, noise))]


def ffn(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`moe.ffn` within one process: experts of every slot, rounded to the model's dtype, summed with the residual."""
    x, expert_ids, weights, w13, w2, residual, _ = arguments
    precision = precision or declared(x.dtype, w13.scheme)
    values = simulate(x.double(), attributes["activation"])
    total = torch.zeros_like(values) if residual is None else residual.double().clone()
    squares, sizes, one_sided, jump = (
        torch.zeros_like(total),
        total**2,
        torch.zeros_like(total),
        torch.zeros_like(total),
    )
    for e in range(attributes["experts"]):
        token, slot = (expert_ids == e).nonzero(as_tuple=True)
        if len(token):
            found = _expert(values[token], weights[token, slot], w13, w2, e, attributes, x.dtype, precision)
            kept = (relative_rounding(x.dtype) * found.reference) ** 2
            for sums, term in (
                (total, found.reference),
                (squares, found.noise**2 + kept),
                (sizes, found.reference**2),
                (one_sided, found.one_sided),
            ):
                sums.index_add_(0, token, term)
            jump[token] = torch.maximum(jump[token], found.jump)  # an expert has a token once
    base = reference(*arguments, **attributes)
    size = precision.sums(weights.shape[1] + 1, sizes.sqrt(), total)
    want = Sums(total, (squares + size**2).sqrt(), base.dtype, base, one_sided + size, jump)
    return [output(0, "y", want)]

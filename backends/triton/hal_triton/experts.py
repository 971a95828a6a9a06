"""The experts: `moe.route`, `moe.dispatch`, `moe.experts`, `moe.combine`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from hal.dispatched import Dispatched
from hal.distributed import Exchange
from hal_triton.kernels.experts import (
    combine_kernel,
    count_kernel,
    gate_up_kernel,
    offsets_kernel,
    place_kernel,
    route_kernel,
    scatter_kernel,
    tiles_kernel,
)
from hal_triton.kernels.gemm import linear_kernel
from hal_triton.launch import as_bytes, launch, power_of_two, tiles
from hal_triton.matmul import FEW_ROWS, block, empty_codes, operand, product_config, quantize, unit
from hal_triton.tuning import chip, config

if TYPE_CHECKING:
    from hal.distributed import Group
    from hal.formats import PackedWeight

TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


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
    """`moe.route`: logits[tokens, experts] -> weights[tokens, top_k], expert_ids[tokens, top_k]."""
    tokens, experts = logits.shape
    weights = torch.empty(tokens, top_k, device=logits.device)
    expert_ids = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    hashed = token_ids is not None and table is not None
    tuned = config("route", chip())
    launch(
        route_kernel,
        tiles(tokens, tuned["R"]),
        tuned,
        logits.contiguous(),
        logits if bias is None else bias,
        token_ids if hashed else expert_ids,
        table if hashed else expert_ids,
        weights,
        expert_ids,
        tokens,
        experts,
        scale,
        TOP_K=top_k,
        SCORING=scoring,
        HAS_BIAS=bias is not None,
        HASH=hashed,
        E=power_of_two(experts),
        K=power_of_two(top_k),
    )
    return weights, expert_ids


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: rows grouped by expert, in slot order inside an expert. Rows behind the last one are padding."""
    tokens, top_k = expert_ids.shape
    width, pairs, device = x.shape[1], expert_ids.numel(), x.device
    index = torch.empty(tokens, top_k, dtype=torch.int64, device=device)
    counts = torch.empty(experts, dtype=torch.int64, device=device)
    row_weights = torch.empty(pairs, device=device)
    rows, scales = empty_codes(pairs, width, activation, x.dtype, device)
    place = config("place", chip())
    blocks = tiles(pairs, place["B"])
    first = torch.empty(blocks, experts, dtype=torch.int32, device=device)
    ids, span = expert_ids.contiguous(), power_of_two(experts)
    launch(count_kernel, blocks, place, ids, first, pairs, experts, E=span)
    launch(offsets_kernel, 1, config("offsets", chip()), first, counts, blocks, experts, E=span)
    launch(place_kernel, blocks, place, ids, first, weights.contiguous(), index, row_weights, pairs, experts)
    fused = "none" if activation == "int8_token" else activation
    source, target, target_scales = x.contiguous(), rows, scales
    if activation == "int8_token":
        source, row_scales = quantize(x, activation=activation)
        launch_scatter(row_scales, index, scales, scales, top_k, "none")
    launch_scatter(source, index, as_rows(target), as_rows(target_scales), top_k, fused)
    done = Dispatched(
        rows,
        None if activation == "none" else scales,
        activation,
        row_weights,
        counts,
        index,
        tokens,
        top_k,
        x.dtype,
    )
    return done if group is None else _exchange(done, group)


def as_rows(tensor: Tensor) -> Tensor:
    """Codes as the scatter kernel stores them: float8 types as bytes."""
    return as_bytes(tensor) if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e8m0fnu) else tensor


def launch_scatter(x: Tensor, index: Tensor, codes: Tensor, scales: Tensor, top_k: int, activation: str) -> None:
    """Copy each token's row, quantised, to all its places."""
    tokens, width = x.shape
    tuned = config("scatter", chip())
    work = tiles(tokens, tuned["R"]) * tiles(width, tuned["C"])
    launch(scatter_kernel, work, tuned, x, index, codes, scales, tokens, width, TOP_K=top_k, ACTIVATION=activation)


def _exchange(local: Dispatched, group: Group) -> Dispatched:
    """Send rows to the processes that hold their experts. Needs row counts on the host."""
    used = int(local.counts.sum())
    way = Exchange.plan(group, local.counts)
    return replace(
        local,
        rows=way.forward(local.rows[:used]),
        scales=None if local.scales is None else way.forward(local.scales[:used]),
        weights=way.forward(local.weights[:used]),
        counts=way.counts,
        route=way,
    )


class RowTiles(NamedTuple):
    """Which rows each tile of a grouped product covers, and whose weights it meets: int32 [tiles] each."""

    first: Tensor
    last: Tensor
    expert: Tensor


def row_tiles(dispatched: Dispatched, size: int) -> RowTiles:
    """Tiles of `size` rows; as many as any distribution of the rows over the experts may need."""
    experts, rows = len(dispatched.counts), len(dispatched.rows)
    count = min(rows, rows // size + experts)
    made = RowTiles(*(torch.empty(count, dtype=torch.int32, device=dispatched.rows.device) for _ in range(3)))
    tuned = config("tiles", chip())
    launch(
        tiles_kernel,
        tiles(count, tuned["B"]),
        tuned,
        dispatched.counts,
        dispatched.counts if dispatched.starts is None else dispatched.starts,
        *made,
        experts,
        count,
        E=power_of_two(experts),
        BM=size,
        HAS_STARTS=dispatched.starts is not None,
    )
    return made


def experts(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts`: rows[rows, hidden] of the two products; what stands in padding rows is undefined."""
    rows, dtype, device = len(dispatched.rows), dispatched.dtype, dispatched.rows.device
    local, hidden, inner = w2.shape
    size = "small" if rows <= FEW_ROWS * local else "large"
    scaled = dispatched.scales is not None
    how = unit(dispatched.activation, w13.scheme, hidden) if scaled else "bf16"
    tuned = product_config("gate-up", how, size)
    own = row_tiles(dispatched, tuned["BM"])
    a, a_scales = operand(dispatched.rows, dispatched.scales)
    w, w_scales = operand(w13.codes, w13.scales)
    fused = activation if block(activation) else "none"
    codes, scales = empty_codes(rows, inner, fused, dtype, device)
    launch(
        gate_up_kernel,
        len(own.first) * tiles(inner, tuned["BN"]),
        tuned,
        a,
        a_scales,
        w,
        w_scales,
        dispatched.weights,
        as_rows(codes),
        as_rows(scales),
        *own,
        len(own.first),
        inner,
        hidden,
        w.stride(0),
        w_scales.stride(0),
        clamp,
        A=dispatched.activation if scaled else "bf16",
        W=w13.scheme,
        UNIT=how,
        EVEN=hidden % tuned["BK"] == 0,
        DTYPE=TYPES[dtype],
        ACTIVATION=fused,
    )
    if activation == "int8_token":
        codes, scales = quantize(codes, activation=activation)
    return _down(codes, scales, activation, w2, dispatched, own, tuned["BM"], size)


def _down(
    codes: Tensor,
    scales: Tensor,
    activation: str,
    w2: PackedWeight,
    dispatched: Dispatched,
    own: RowTiles,
    own_size: int,
    size: str,
) -> Tensor:
    """The second product of every row with its expert's `w2`."""
    _, outputs, width = w2.shape
    how = unit(activation, w2.scheme, width)
    tuned = product_config("linear", how, size)
    if tuned["BM"] != own_size:
        own = row_tiles(dispatched, tuned["BM"])
    out = torch.empty(len(codes), outputs, dtype=dispatched.dtype, device=codes.device)
    a, a_scales = operand(codes, scales)
    w, w_scales = operand(w2.codes, w2.scales)
    launch(
        linear_kernel,
        len(own.first) * tiles(outputs, tuned["BN"]),
        tuned,
        a,
        a_scales,
        w,
        w_scales,
        out,
        *own,
        len(codes),
        len(own.first),
        outputs,
        width,
        w.stride(0),
        w_scales.stride(0),
        A="bf16" if activation == "none" else activation,
        W=w2.scheme,
        UNIT=how,
        GROUPED=True,
        EVEN=width % tuned["BK"] == 0,
    )
    return out


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: y[tokens, hidden], slots summed in float32 in slot order, then the residual, rounded once."""
    if dispatched.route is not None:
        assert isinstance(dispatched.route, Exchange)
        rows = dispatched.route.backward(rows)
    width = rows.shape[1]
    y = torch.empty(dispatched.tokens, width, dtype=rows.dtype, device=rows.device)
    tuned = config("combine", chip())
    launch(
        combine_kernel,
        tiles(dispatched.tokens, tuned["R"]) * tiles(width, tuned["C"]),
        tuned,
        rows.contiguous(),
        dispatched.index.contiguous(),
        y if residual is None else residual.contiguous(),
        y,
        dispatched.tokens,
        width,
        TOP_K=dispatched.top_k,
        HAS_RESIDUAL=residual is not None,
    )
    return y

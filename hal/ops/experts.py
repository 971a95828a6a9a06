"""Contracts of the mixture of experts: routing, and hidden states through the experts and back."""

from __future__ import annotations

from hal.contract import Contract
from hal.ops.matmul import ACTIVATIONS

__all__ = ["CONTRACTS"]

GARBAGE = "hal.conformance.laws.memory:INERT_GARBAGE"
STRIDES = "hal.conformance.laws.memory:SPREAD_OUT"
CHUNKS = "hal.conformance.laws.pieces:CHUNKS"
REVERSED = "hal.conformance.laws.slots:REVERSED_TOKENS"
UNUSED_SLOTS = "hal.conformance.laws.slots:UNUSED_SLOTS"

TOKENS = (0, 1 << 20)
ROWS = (0, 1 << 23)

SCORINGS = ("sqrtsoftplus", "sigmoid", "softmax")
UNUSED = "Expert id -1 is an unused slot: no row goes out for it and nothing comes back."
IDLE = "Experts without rows are legal, and so is a process without rows."
EMPTY = "Zero tokens are legal and return empty tensors."

ROUTE = Contract(
    name="moe.route",
    version=1,
    signature=(
        "logits[tokens experts]:f32, bias[experts]:f32?, token_ids[tokens]:i64?, table[vocab top_k]:i32?; "
        "top_k: int, scoring: str, scale: float -> weights[tokens top_k]:f32, expert_ids[tokens top_k]:i32"
    ),
    reference="hal.reference.experts:route",
    doc="Experts of each token, by score and bias or by a table of token ids, and their routing weights.",
    edges={
        "bias": "The bias takes part in the choice only, never in the weights.",
        "table": "With table, experts are table[token_ids] in that order; weights still come from the logits.",
        "ties": "Of equal scores the lowest expert wins.",
        "weights": "Scores of the chosen experts, normalised to sum 1, times scale; softmax scores too.",
        "vanishing scores": "Where every chosen score is 0, every weight is 0.",
        "empty": EMPTY,
    },
    numerics="routing",
    dynamic={"tokens": TOKENS},
    samples="hal.conformance.samples.experts:route",
    laws=(STRIDES, CHUNKS, REVERSED),
    choices={"scoring": SCORINGS},
)

DISPATCH = Contract(
    name="moe.dispatch",
    version=1,
    signature=(
        "x[tokens hidden]:float, expert_ids[tokens top_k]:i32, weights[tokens top_k]:f32, group: Group?; "
        "experts: int, activation: str -> dispatched: Dispatched"
    ),
    reference="hal.reference.experts:dispatch",
    doc="Quantise hidden states and bring a copy to every expert they were routed to, over a group or within one "
    "process.",
    edges={
        "unused slot": UNUSED,
        "order": "Rows are grouped by expert; their order within an expert is free.",
        "padding": "Rows outside every expert's segment are padding: they may hold anything, and nobody reads them.",
        "idle experts": IDLE,
        "empty": EMPTY,
    },
    numerics="codes",
    dynamic={"tokens": TOKENS},
    samples="hal.conformance.samples.experts:dispatch",
    laws=(STRIDES, UNUSED_SLOTS),
    choices={"activation": ACTIVATIONS},
)

EXPERTS = Contract(
    name="moe.experts",
    version=1,
    signature=(
        "dispatched: Dispatched, w13: Weight, w2: Weight; clamp: float, activation: str -> rows[rows hidden]:float"
    ),
    reference="hal.reference.experts:experts",
    doc="Two products per row with a clamped SwiGLU between them; the routing weight multiplies before the second one.",
    edges={
        "clamp": "gate is clamped from above only, up on both sides.",
        "weight": "silu(gate) * up * weight is rounded to the model's dtype, then quantised, then multiplied.",
        "padding": "Padding rows are not read; what is returned for them is not looked at.",
        "idle experts": IDLE,
        "empty": EMPTY,
    },
    numerics="experts",
    dynamic={"rows": ROWS},
    samples="hal.conformance.samples.experts:experts",
    laws=(GARBAGE,),
    choices={"activation": ACTIVATIONS},
)

COMBINE = Contract(
    name="moe.combine",
    version=1,
    signature="rows[rows hidden]:float, dispatched: Dispatched, residual[tokens hidden]?; -> y[tokens hidden]:float",
    reference="hal.reference.experts:combine",
    doc="Bring rows back to their tokens and add them up with the residual.",
    edges={
        "sum": "Slots are added in float32 in slot order, then the residual, then the sum is rounded once.",
        "unused slot": "A slot of -1 adds nothing; a token without used slots gets its residual, or zeros.",
        "padding": "Padding rows may hold anything, NaN included.",
        "empty": EMPTY,
    },
    numerics="sum",
    dynamic={"tokens": TOKENS, "rows": ROWS},
    samples="hal.conformance.samples.experts:combine",
    laws=(GARBAGE, STRIDES),
)

FFN = Contract(
    name="moe.ffn",
    version=1,
    signature=(
        "x[tokens hidden]:float, expert_ids[tokens top_k]:i32, weights[tokens top_k]:f32, w13: Weight, w2: Weight, "
        "residual[tokens hidden]?, group: Group?; experts: int, clamp: float, activation: str -> y[tokens hidden]:float"
    ),
    reference="hal.reference.experts:ffn",
    doc="The routed experts of a layer, for chips with one kernel that dispatches, computes and combines.",
    edges={
        "unused slot": UNUSED,
        "idle experts": IDLE,
        "waves": "Bits do not depend on how many experts are computed at a time.",
        "empty": EMPTY,
    },
    numerics="experts",
    dynamic={"tokens": TOKENS},
    parts=("moe.dispatch", "moe.experts", "moe.combine"),
    samples="hal.conformance.samples.experts:ffn",
    laws=(STRIDES, CHUNKS, REVERSED, UNUSED_SLOTS),
    choices={"activation": ACTIVATIONS},
)

CONTRACTS = (ROUTE, DISPATCH, EXPERTS, COMBINE, FFN)

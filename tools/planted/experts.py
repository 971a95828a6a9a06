"""One expert: two products with a clamped SwiGLU and a requantisation between them, in bf16, FP8, MXFP4 and int8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.formats import simulate
from hal.numerics import Sums
from hal.numerics.experts import expert_rows
from hal.numerics.precision import Precision
from tools.planted.matmul import blocked, fp8_tensor_core, split, stored
from tools.planted.trial import Outputs, Trial, draw, truncate

_ROWS, _HIDDEN, _INNER, _OUT, _CLAMP = 24, 2048, 768, 256, 2.0  # V4's clamp is 10; below it SiLU hides clamps
_BF16 = torch.bfloat16

# scheme, activation quantiser, declared accumulator, declared dtype of gate and up
FORMS = (
    ("bf16", "none", "float32", "float32"),
    ("fp8_block128", "e4m3_128", "float32", "float32"),
    ("fp8_block128", "e4m3_128", "fp8_tensor_core", "float32"),
    ("mxfp4", "e4m3_128", "fp8_tensor_core", "float32"),
    ("mxfp4", "e4m3_32", "fp8_tensor_core", "bfloat16"),
    ("w8a8_int8", "int8_token", "float32", "float32"),
)


@dataclass(frozen=True)
class Form:
    """How a kernel computes, and what it may have got wrong."""

    block: int = 128
    split: int = 0
    work: torch.dtype = torch.float32
    fp8_sums: bool = False
    low_hidden: bool = False  # gate and up rounded to bf16 before the activation
    clamp_gate: bool = True
    clamp_up: bool = True
    gate_below: bool = False  # clamps the gate from below too
    weight: str = "before"  # the routing weight: before the second product, after it, never
    swap: bool = False  # up taken for gate
    requantise: str = ""  # another activation quantiser than the declared one; "no": none
    tanh: bool = False  # another activation function
    cut: bool = False  # stores by truncating


def trial(scheme: str, activation: str, accumulate: str, hidden: str, data: str, seed: int) -> Trial:
    """`scheme` names the weights' format, `activation` the quantiser of both products' inputs; `accumulate` and
    `hidden` are the kernels' declared precision."""
    rng = torch.Generator().manual_seed(seed)
    x = simulate(draw(data, (_ROWS, _HIDDEN), rng).to(_BF16), activation).float()
    w13 = stored(
        torch.randn(2 * _INNER, _HIDDEN, generator=rng) * 1.5 / _HIDDEN**0.5 / x.square().mean().sqrt(), scheme
    )
    w2 = stored(torch.randn(_OUT, _INNER, generator=rng) / _INNER**0.5, scheme)
    factor = torch.rand(_ROWS, generator=rng) + 0.2
    precision = Precision(accumulate=accumulate, hidden=hidden)

    def make(form: Form, a: Tensor = w13, b: Tensor = w2, weights: Tensor = factor, rows: Tensor = x) -> Outputs:
        def product(left: Tensor, right: Tensor) -> Tensor:
            if form.fp8_sums:
                return fp8_tensor_core(left, right)
            if form.work == torch.float64:
                return left.double() @ right.double().mT
            return split(left, right, form.split) if form.split else blocked(left, right, form.block)

        gate, up = product(rows, a).chunk(2, -1)
        if form.swap:
            gate, up = up, gate
        if form.low_hidden:
            gate, up = gate.to(_BF16).float(), up.to(_BF16).float()
        if form.clamp_gate:
            gate = gate.clamp(-_CLAMP if form.gate_below else None, _CLAMP)
        if form.clamp_up:
            up = up.clamp(-_CLAMP, _CLAMP)
        inner = (F.gelu(gate, approximate="tanh") if form.tanh else F.silu(gate)) * up
        if form.weight == "before":
            inner = inner * weights[:, None]
        low = inner.to(_BF16)
        if form.requantise != "no":
            low = simulate(low, form.requantise or activation)
        out = product(low.float(), b)
        if form.weight == "after":
            out = out * weights[:, None]
        return (truncate(out, _BF16) if form.cut else out.to(_BF16),)

    low = hidden == "bfloat16"
    found = expert_rows(x, factor, w13, w2, _CLAMP, activation, _BF16, precision)
    clean = make(Form(low_hidden=low))
    want = Sums(found.reference, found.noise, _BF16, clean[0], found.one_sided, found.jump)
    honest = {
        "blocks of 128": clean,
        "blocks of 16": make(Form(16, low_hidden=low)),
        "split-K 4": make(Form(split=4, low_hidden=low)),
        "gate and up in float32": make(Form()),
        "float64": make(Form(work=torch.float64)),
    }
    if accumulate == "fp8_tensor_core":
        honest["FP8 tensor core"] = make(Form(fp8_sums=True, low_hidden=low))
    dropped = w2.clone()
    dropped[:, -1] = 0
    one = clean[0].clone()
    one[5, 7] += 0.05 * max(float(found.reference[5].square().mean().sqrt()), abs(float(one[5, 7])))
    mixed = torch.cat([w13.view(2, _INNER, -1)[:, ::2].flatten(0, 1), w13.view(2, _INNER, -1)[:, 1::2].flatten(0, 1)])
    faulty = {
        "no clamp": make(Form(low_hidden=low, clamp_gate=False, clamp_up=False)),
        "up not clamped": make(Form(low_hidden=low, clamp_up=False)),
        "gate clamped from below": make(Form(low_hidden=low, gate_below=True)),
        "gate and up swapped": make(Form(low_hidden=low, swap=True)),
        "gate and up interleaved": make(Form(low_hidden=low), a=mixed),
        "routing weight forgotten": make(Form(low_hidden=low, weight="never")),
        "routing weights of the next row": make(Form(low_hidden=low), weights=factor.roll(1)),
        "GELU instead": make(Form(low_hidden=low, tanh=True)),
        "last of the inner channels dropped": make(Form(low_hidden=low), b=dropped),
        "row of the neighbour": make(Form(low_hidden=low), rows=torch.cat([x[:-1], x[-2:-1]])),
        "store truncates": make(Form(low_hidden=low, cut=True)),
        "one element 5 % off": (one,),
    }
    if activation != "none":
        faulty["not requantised"] = make(Form(low_hidden=low, requantise="no"))
        faulty["routing weight after the second product"] = make(Form(low_hidden=low, weight="after"))
        other = "e4m3_128" if activation == "int8_token" else "int8_token"
        faulty[f"requantised as {other}"] = make(Form(low_hidden=low, requantise=other))
    name = f"{scheme}, {activation}, sums in {accumulate}, hidden in {hidden}"
    return Trial("experts", name, data, (want,), _INNER, clean, honest, faulty)

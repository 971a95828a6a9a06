"""Activation quantisers, whose inputs are exact, and cache rows, whose inputs are rounded on the way to the codes."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.formats import quantize, simulate
from hal.numerics import Exact, Grid
from hal.numerics.precision import Precision
from hal.numerics.quantisers import grid_step, quantiser_noise, row_noise
from tools.planted.trial import Outputs, Trial, draw

ACTIVATIONS = ("e4m3_128", "e4m3_32", "e2m1_32", "int8_token")
_LARGEST = {"e4m3": 448.0, "e2m1": 6.0, "int8": 127.0}
_BF16 = torch.bfloat16
_TOKENS, _FEATURES, _DIM, _ROPE = 32, 1024, 512, 64


def quantiser(activation: str, data: str, seed: int) -> Trial:
    """Codes and scales of bf16 activations, the codes as the values they stand for in units of their scale."""
    rng = torch.Generator().manual_seed(seed)
    x = draw(data, (_TOKENS, _FEATURES), rng).to(_BF16)
    x[:, :32] = x[:, :32].float().mul(8).round().div(8).to(_BF16)  # many exact ties
    right = quantize(x, activation)
    scales, largest = right.scales.float(), _LARGEST[activation.split("_")[0]]
    width = _FEATURES // scales.shape[-1]
    wide = scales.repeat_interleave(width, -1)
    exact = x.double() / wide.double()
    clean = ((right.dequantize(torch.float64) / wide).float().where(wide > 0, 0.0), scales)
    step = grid_step(x, activation) / wide
    wants = (Grid(exact, clean[0].double(), quantiser_noise(exact, activation), step), Exact(scales))

    def codes(v: Tensor) -> Tensor:
        """Nearest code, ties to even, saturating."""
        if activation == "int8_token":
            return v.round().clamp(-largest, largest)
        smallest = torch.tensor(2.0**-9 if largest == 448 else 0.5, dtype=v.dtype)
        digits, lowest = (4, -6) if largest == 448 else (2, 0)
        spacing = torch.exp2(torch.floor(torch.log2(v.abs().clamp_min(2.0**lowest))) - digits + 1).maximum(smallest)
        return ((v / spacing).round() * spacing).clamp(-largest, largest)

    def scaled(factor: Tensor) -> Outputs:
        return codes(x.float() / factor.repeat_interleave(width, -1)), factor

    blocks = x.float().unflatten(-1, (-1, width))
    honest = {
        "divided": (codes(x.float() / wide), scales),
        "times the inverse": (codes(x.float() * (1 / wide)), scales),
        "float64": (codes(exact).float(), scales),
    }
    v = x.float() / wide
    steps = step.float()
    away = (v.abs() / steps + 0.5).floor() * steps * v.sign()
    one = clean[0].clone()
    one[3, 40] = codes(one[3, 40] + steps[3, 40] * 1.01)
    faulty = {
        "codes truncated": ((v / steps).trunc() * steps, scales),
        "scale from the largest, not the largest magnitude": scaled(
            scales * (blocks.amax(-1).clamp_min(1e-4) / blocks.abs().amax(-1))
        ),
        "scale of the next block": scaled(scales.roll(1, -1) if scales.shape[-1] > 1 else scales.roll(1, 0)),
        "scale twice as large": scaled(2 * scales),
        "one code a step off": (one, scales),
        "scales of the next token": (clean[0], scales.roll(1, 0)),
    }
    if activation == "int8_token":
        faulty["scale of 128 steps"] = scaled(scales * 127 / 128)
    else:
        faulty["ties away from zero"] = (codes(away), scales)  # int8 scales leave no exact ties
        faulty["scale not a power of two"] = scaled(blocks.abs().amax(-1) / largest)
        faulty["scale rounded down"] = scaled(torch.exp2(torch.floor(torch.log2(blocks.abs().amax(-1) / largest))))
    return Trial("quantise", activation, data, wants, width, clean, honest, faulty)


def cache_rows(data: str, seed: int) -> Trial:
    """Rows of the main cache, read back: norm, rotation of the last 64 channels, e4m3 blocks of 64 for the others."""
    rng = torch.Generator().manual_seed(seed)
    x = draw(data, (2 * _TOKENS, _DIM), rng).to(_BF16)
    weight = 1 + 0.1 * torch.randn(_DIM, generator=rng)
    angle = torch.arange(2 * _TOKENS)[:, None] * 10_000 ** (
        -torch.arange(_ROPE // 2, dtype=torch.float64) / (_ROPE // 2)
    )

    def norm(dtype: torch.dtype, eps: float = 1e-6) -> Tensor:
        y = x.to(dtype)
        return y * (y.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(dtype)

    def rotated(y: Tensor, turn: Tensor = angle, first: bool = False, halves: bool = False) -> Tensor:
        start = 0 if first else _DIM - _ROPE
        part, cos, sin = y[:, start : start + _ROPE], turn.cos().to(y.dtype), turn.sin().to(y.dtype)
        a, b = part.chunk(2, -1) if halves else (part[:, ::2], part[:, 1::2])
        pair = (a * cos - b * sin, a * sin + b * cos)
        new = torch.cat(pair, -1) if halves else torch.stack(pair, -1).flatten(-2)
        return torch.cat([y[:, :start], new, y[:, start + _ROPE :]], -1)

    def kept(y: Tensor) -> Tensor:
        plain, turned = y[:, : _DIM - _ROPE], y[:, _DIM - _ROPE :]
        return torch.cat([simulate(plain, "e4m3_64").double(), turned.to(_BF16).double()], -1)

    exact = rotated(norm(torch.float64))
    want = Grid(exact, kept(exact), row_noise(exact, _ROPE, False, _BF16, Precision()))
    f32, low = norm(torch.float32), norm(torch.float32).to(_BF16).float()
    clean = kept(rotated(low).to(_BF16).float())
    plain = rotated(low).double()[:, : _DIM - _ROPE]
    cut = (plain / grid_step(plain, "e4m3_64")).trunc() * grid_step(plain, "e4m3_64")
    block = low.clone()
    block[:, :64] = low[:, 64:128]
    honest = {
        "norm and rotation rounded to bf16": clean,
        "rounded once": kept(rotated(f32).to(_BF16).float()),
        "float32 up to the codes": kept(rotated(f32)),
        "float64": kept(exact),
    }
    one = clean.clone()
    one[3, 5] *= 1.25
    faulty = {
        "first 64 channels rotated": kept(rotated(low, first=True)),
        "halves rotated instead of pairs": kept(rotated(low, halves=True)),
        "rotated the other way": kept(rotated(low, -angle)),
        "position one too large": kept(rotated(low, angle.roll(-1, 0))),
        "rotation forgotten": kept(low),
        "norm weight forgotten": kept(rotated(low / weight)),
        "epsilon of 1e-2": kept(rotated(norm(torch.float32, 1e-2))),
        "codes truncated": torch.cat([cut, clean[:, _DIM - _ROPE :]], -1),
        "rotated channels quantised too": kept(
            torch.cat([low[:, :448], simulate(rotated(low)[:, 448:], "e4m3_64")], -1)
        ),
        "nothing quantised": rotated(low).to(_BF16).double(),
        "a block in the place of another": kept(rotated(block)),
        "row of the neighbour": torch.cat([clean[:-1], clean[-2:-1]]),
        "one value a quarter off": one,
    }
    outputs = {name: (y,) for name, y in faulty.items()}
    return Trial(
        "store", "norm, rotation, e4m3_64", data, (want,), _DIM, (clean,), {n: (y,) for n, y in honest.items()}, outputs
    )

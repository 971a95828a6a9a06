"""Matrix products with float32 sums: bf16, fp16, fp32, FP8 blocks, MXFP4 and int8, K up to 18,432."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hal.formats import PackedWeight, Quantized, prepare, quantize
from hal.numerics import Sums
from hal.numerics.noise import envelope, matmul_noise
from hal.numerics.precision import declared
from tools.planted.trial import Trial, cut, draw, truncate

SHAPES = ((48, 160), (2, 1024))  # tokens, outputs: a prefill, a decode
SCHEMES = ("fp32", "bf16", "fp16", "fp8_block128", "mxfp4", "mxfp8", "w8a8_int8")


def blocked(
    a: Tensor,
    b: Tensor,
    size: int,
    accumulator: torch.dtype = torch.float32,
    upto: int | None = None,
    reverse: bool = False,
) -> Tensor:
    """Sum over blocks of `size` along K, the running sum kept in `accumulator`."""
    stop = a.shape[1] if upto is None else upto
    starts = list(range(0, stop, size))
    total = torch.zeros(a.shape[0], b.shape[0], dtype=accumulator)
    for k in reversed(starts) if reverse else starts:
        end = min(k + size, stop)
        total = (total.float() + a[:, k:end] @ b[:, k:end].mT).to(accumulator)
    return total.float()


def split(a: Tensor, b: Tensor, parts: int) -> Tensor:
    pieces = [x @ y.mT for x, y in zip(a.chunk(parts, 1), b.chunk(parts, 1), strict=True)]
    return torch.stack(pieces).sum(0)


def tensor_core(a: Tensor, b: Tensor) -> Tensor:
    """Exact sums of 16 products, and a running float32 sum that truncates instead of rounding."""
    a, b = a.double(), b.double()
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for k in range(0, a.shape[1], 16):
        total = cut(total + a[:, k : k + 16] @ b[:, k : k + 16].mT, 24)
    return total.float()


def fp8_tensor_core(a: Tensor, b: Tensor) -> Tensor:
    """Hopper's FP8 units: 32 products and the running sum are aligned to the largest and cut to 13 fraction bits, and
    the sum goes to float32 every 128 products (DeepSeek-V3 technical report, section 3.3.2)."""
    total = torch.zeros(a.shape[0], b.shape[0])
    terms = torch.empty(32, a.shape[0], b.shape[0])
    for block in range(0, a.shape[1], 128):
        part = torch.zeros_like(total)
        for k in range(block, block + 128, 32):
            torch.mul(a.mT[k : k + 32, :, None], b.mT[k : k + 32, None], out=terms)
            largest = torch.maximum(torch.maximum(terms.amax(0), -terms.amin(0)), part.abs())
            exponent = torch.frexp(largest).exponent - 14
            unit = torch.ldexp(torch.ones_like(largest), exponent)
            part = (terms.div_(unit).trunc_().sum(0) + (part / unit).trunc()) * unit
        total = total + part
    return total


def trial(scheme: str, k: int, shape: tuple[int, int], data: str, seed: int) -> Trial:
    """`a` and `b` are float32 and hold exactly what is stored; every kernel multiplies those."""
    rng = torch.Generator().manual_seed(seed)
    a, b, out, faulty_operands = _operands(scheme, k, shape, data, rng)
    exact = a.double() @ b.double().mT
    base = (a @ b.mT).to(out)
    noise = matmul_noise(a, b, exact, declared(out, scheme))
    want = Sums(exact, noise, out, base, one_sided=noise)
    honest = {
        "float32, one call": base,
        "blocks of 16": blocked(a, b, 16).to(out),
        "blocks of 128": blocked(a, b, 128).to(out),
        "blocks of 64, last first": blocked(a, b, 64, reverse=True).to(out),
        "split-K 8": split(a, b, 8).to(out),
        "float64 sums": exact.to(out),
        "tensor core that truncates": tensor_core(a, b).to(out),
    }
    if "fp8" in scheme or "fp4" in scheme:
        honest["FP8 tensor core"] = fp8_tensor_core(a, b).to(out)
    v = envelope(a, b)
    clean = blocked(a, b, 128)
    row, column = (int(torch.randint(size, (), generator=rng)) for size in shape)
    one = clean.clone()
    one[row, column] += 0.05 * torch.maximum(v, exact.abs())[row, column].float()
    stale = clean.clone()
    stale[-1] = stale[-2]
    faulty = {
        **{f"last {n} of K dropped": blocked(a, b, 128, upto=k - n) for n in (1, 8, 32)},
        "first K block counted twice": clean + a[:, :128] @ b[:, :128].mT,
        "one element 5 % off": one,
        "last row repeats the one before": stale,
        "accumulator in bf16, every 128": blocked(a, b, 128, torch.bfloat16),
        "accumulator in bf16, four times": blocked(a, b, math.ceil(k / 4), torch.bfloat16),
        **{name: blocked(x, y, 128) for name, (x, y) in faulty_operands.items()},
    }
    outputs = {name: (y.to(out),) for name, y in faulty.items()}
    if out != torch.float32:
        outputs["store truncates"] = (truncate(clean, out),)
    return Trial(
        "matmul",
        f"{scheme}, {shape[0]} x {k} x {shape[1]}",
        data,
        (want,),
        k,
        (clean.to(out),),
        {n: (y,) for n, y in honest.items()},
        outputs,
    )


def stored(weight: Tensor, scheme: str) -> Tensor:
    """What `scheme` stores of a float32 weight, as float32."""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if scheme in names:
        return weight.to(names[scheme]).float()
    return prepare(weight, scheme).dequantize(torch.float32)


def _operands(
    scheme: str, k: int, shape: tuple[int, int], data: str, rng: torch.Generator
) -> tuple[Tensor, Tensor, torch.dtype, dict[str, tuple[Tensor, Tensor]]]:
    """Operands as stored, the output's dtype, and operands as a faulty kernel of this scheme would read them."""
    m, n = shape
    a = draw(data, (m, k), rng)
    # Real weights are not equally large everywhere; block scales differ.
    sizes = torch.exp2(2 * torch.rand(-(-n // 32), k // 32, generator=rng)).repeat_interleave(32, 0)[:n]
    b = torch.randn(n, k, generator=rng) / math.sqrt(k) * sizes.repeat_interleave(32, 1)
    bf16 = torch.bfloat16
    if scheme == "fp32":
        tf32 = cut(a.double(), 11).float(), cut(b.double(), 11).float()
        return a, b, torch.float32, {"TF32 products": tf32, "bf16 products": (a.to(bf16).float(), b.to(bf16).float())}
    if scheme in ("bf16", "fp16"):
        dtype = bf16 if scheme == "bf16" else torch.float16
        return a.to(dtype).float(), b.to(dtype).float(), dtype, {}
    activation = {"fp8_block128": "e4m3_128", "mxfp4": "e4m3_128", "mxfp8": "e4m3_32", "w8a8_int8": "int8_token"}[
        scheme
    ]
    left, right = quantize(a.to(bf16), activation), prepare(b, scheme)
    x, w = _float(left), _float(right)
    faulty = {
        "activation scales of the next token": (_float(replace(left, scales=_roll(left.scales, 0))), w),
        "weight scales one block off": (
            x,
            _float(replace(right, scales=_roll(right.scales, 0 if scheme == "w8a8_int8" else -1))),
        ),
    }
    if left.scales.shape[-1] > 1:
        faulty["activation scales one block off"] = (_float(replace(left, scales=_roll(left.scales, -1))), w)
    if scheme == "mxfp4":
        swapped = ((right.codes.view(torch.uint8) >> 4) | (right.codes.view(torch.uint8) << 4)).view(right.codes.dtype)
        faulty["nibbles swapped"] = (x, _float(replace(right, codes=swapped)))
    if scheme == "w8a8_int8":
        faulty["codes from 0 to 254"] = ((left.codes.float() + 1) * left.scales.float().view(m, 1), w)
    return x, w, bf16, faulty


def _float(packed: Quantized | PackedWeight) -> Tensor:
    return packed.dequantize(torch.float32) if isinstance(packed, PackedWeight) else packed.dequantize().float()


def _roll(scales: Tensor | None, dim: int) -> Tensor:
    """Scales of the next block along `dim`; torch cannot roll one-byte floats."""
    assert scales is not None
    return (
        scales.view(torch.uint8).roll(1, dim).view(scales.dtype) if scales.element_size() == 1 else scales.roll(1, dim)
    )

"""Matrix products with float32 sums: bf16, fp16, fp32, FP8 blocks, MXFP4 and int8, K up to 18,432."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hal.numerics import Sums
from hal.numerics.noise import envelope, matmul_noise
from hal.numerics.precision import declared
from tools.planted.trial import Trial, cut, draw, truncate

SHAPES = ((48, 160), (2, 1024))  # tokens, outputs: a prefill, a decode
SCHEMES = ("fp32", "bf16", "fp16")


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


def cutting(a: Tensor, b: Tensor, group: int, bits: int, promote: int) -> Tensor:
    """A tensor core: exact sums of `group` products, a running sum cut to `bits` bits, promoted every `promote`."""
    a, b = a.double(), b.double()
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for block in range(0, a.shape[1], promote):
        part = torch.zeros_like(total)
        for k in range(block, min(block + promote, a.shape[1]), group):
            part = cut(part + a[:, k : k + group] @ b[:, k : k + group].mT, bits)
        total = part if promote >= a.shape[1] else (total + part).float().double()
    return total.float()


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
        "tensor core that truncates": cutting(a, b, 16, 24, k).to(out),
    }
    if "fp8" in scheme or "fp4" in scheme:
        honest["FP8 tensor core, 14 bits, promoted every 128"] = cutting(a, b, 32, 14, 128).to(out)
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
    stored = {name: (y.to(out),) for name, y in faulty.items()}
    if out != torch.float32:
        stored["store truncates"] = (truncate(clean, out),)
    return Trial(
        "matmul",
        f"{scheme}, {shape[0]} x {k} x {shape[1]}",
        data,
        (want,),
        k,
        (clean.to(out),),
        {n: (y,) for n, y in honest.items()},
        stored,
    )


def _operands(
    scheme: str, k: int, shape: tuple[int, int], data: str, rng: torch.Generator
) -> tuple[Tensor, Tensor, torch.dtype, dict[str, tuple[Tensor, Tensor]]]:
    """Operands as stored, the output's dtype, and operands as a faulty kernel of this scheme would read them."""
    m, n = shape
    a = draw(data, (m, k), rng)
    b = torch.randn(n, k, generator=rng) / math.sqrt(k)
    # Real weights are not equally large everywhere; block scales differ.
    b = b * torch.exp2(2 * torch.rand(-(-n // 32), k // 32, generator=rng)).repeat_interleave(32, 0)[
        :n
    ].repeat_interleave(32, 1)
    bf16 = torch.bfloat16
    match scheme:
        case "fp32":
            tf32 = [cut(x.double(), 11).float() for x in (a, b)]
            return (
                a,
                b,
                torch.float32,
                {"TF32 products": (tf32[0], tf32[1]), "bf16 products": (a.to(bf16).float(), b.to(bf16).float())},
            )
        case "bf16" | "fp16":
            dtype = bf16 if scheme == "bf16" else torch.float16
            return a.to(dtype).float(), b.to(dtype).float(), dtype, {}
    raise ValueError(scheme)

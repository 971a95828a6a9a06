"""Sparse attention at head_dim 512: window only, window and 512 listed rows (CSA), window and a prefix (HCA)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hal.numerics import Sums
from hal.numerics.noise import softmax_sum
from hal.numerics.precision import declared
from tools.planted.trial import Outputs, Trial, draw, truncate

_T, _H, _D, _WINDOW, _TOP = 6, 16, 512, 128, 512
_F32 = torch.float32
KINDS = ("window", "csa", "hca")


@dataclass(frozen=True)
class Case:
    """What a kernel is given: q [tokens, heads, dim] and, per token, rows [n, dim] with a mask of those it may see."""

    q: Tensor
    rows: Tensor
    seen: Tensor
    sink: Tensor
    scale: float
    dtype: torch.dtype


def _finish(case: Case, out: Tensor, lse: Tensor) -> Outputs:
    return out.to(case.dtype), lse.float()


def one_pass(case: Case, weights: torch.dtype = _F32, normalised: bool = False, work: torch.dtype = _F32) -> Outputs:
    """Whole softmax at once. `weights`: dtype of the softmax weights; `normalised`: divided before they are rounded."""
    rows = case.rows.to(work)
    s = (case.q.to(work) @ rows.mT * case.scale).masked_fill(~case.seen[:, None], -torch.inf)
    m = torch.maximum(s.amax(-1, keepdim=True), case.sink.to(work)[:, None])
    p = (s - m).exp()
    total = p.sum(-1, keepdim=True)
    den = total + (case.sink.to(work)[:, None] - m).exp()
    lse = (total.log() + m)[..., 0]
    if normalised:
        return _finish(case, (p / den).to(weights).to(work) @ rows, lse)
    return _finish(case, p.to(weights).to(work) @ rows / den, lse)


@dataclass(frozen=True)
class Fault:
    """Switches of `online` that real kernels have got wrong."""

    rescale: bool = True  # of the running sum when the maximum grows
    sinks: int = 1
    sink_in_lse: bool = False
    cut_weights: bool = False
    cut_out: bool = False
    spill: torch.dtype = _F32  # dtype of the running sum
    scores: torch.dtype = _F32
    sink_of_neighbour: bool = False


def online(
    case: Case,
    block: int = 64,
    weights: torch.dtype | None = None,
    base2: bool = False,
    reverse: bool = False,
    fault: Fault = Fault(),
) -> Outputs:
    """FlashAttention's running softmax over blocks of rows."""
    weights = weights or case.dtype
    q, n = case.q.float(), case.rows.shape[1]
    log2e = 1.4426950408889634
    exp = torch.exp2 if base2 else torch.exp
    unit = log2e if base2 else 1.0
    top = torch.full((*q.shape[:2], 1), -torch.inf)
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    starts = list(range(0, n, block))
    for start in reversed(starts) if reverse else starts:
        rows, seen = case.rows[:, start : start + block].float(), case.seen[:, start : start + block]
        s = ((q @ rows.mT) * (case.scale * unit)).to(fault.scores).float().masked_fill(~seen[:, None], -torch.inf)
        new = torch.maximum(top, s.amax(-1, keepdim=True))
        safe = torch.where(new == -torch.inf, 0.0, new)
        p = exp(s - safe)
        shrink = exp(top - safe) if fault.rescale else torch.ones_like(top)
        total = total * shrink + p.sum(-1, keepdim=True)
        p = truncate(p, weights).float() if fault.cut_weights else p.to(weights).float()
        out = (out * shrink + p @ rows).to(fault.spill).float()
        top = new
    sink = case.sink.roll(1) if fault.sink_of_neighbour else case.sink
    den = total + fault.sinks * exp(sink.float()[:, None] * unit - top)
    lse = (den if fault.sink_in_lse else total).log() + top / unit
    if fault.cut_out:
        return truncate(out / den, case.dtype), lse[..., 0].float()
    return _finish(case, out / den, lse[..., 0])


def merged(case: Case, cuts: tuple[int, ...], weights: torch.dtype | None = None) -> Outputs:
    """Parts computed apart and merged by their lse: split-KV, or a window pass and a compressed pass."""
    weights = weights or case.dtype
    parts, edges = [], [0, *cuts, case.rows.shape[1]]
    for a, b in pairwise(edges):
        rows, seen = case.rows[:, a:b].float(), case.seen[:, a:b]
        s = (case.q.float() @ rows.mT * case.scale).masked_fill(~seen[:, None], -torch.inf)
        m = s.amax(-1, keepdim=True)
        p = (s - torch.where(m == -torch.inf, 0.0, m)).exp()
        total = p.sum(-1, keepdim=True)
        parts.append((p.to(weights).float() @ rows / total.clamp_min(1e-30), total.log() + m))
    lses = torch.stack([lse for _, lse in parts])
    lse = lses.logsumexp(0)
    whole = torch.logaddexp(lse, case.sink.float()[:, None])
    out = sum((lses[i] - whole).exp() * part for i, (part, _) in enumerate(parts))
    assert isinstance(out, Tensor)
    return _finish(case, out, lse[..., 0])


def trial(kind: str, dtype: torch.dtype, data: str, spread: float, seed: int) -> Trial:
    rng = torch.Generator().manual_seed(seed)
    tables = _case(kind, dtype, data, spread, rng)
    case = tables("")
    exact = softmax_sum(case.q, case.rows, case.seen, case.sink, case.scale, declared(dtype))
    base = online(case)
    wants = (
        Sums(exact.out, exact.out_noise, dtype, base[0], exact.out_one_sided),
        Sums(exact.lse, exact.lse_noise, _F32, base[1], exact.lse_noise),
    )
    n = case.rows.shape[1]
    honest = {
        "running softmax, blocks of 64": base,
        "blocks of 64, last first": online(case, reverse=True),
        "blocks of 128, powers of two": online(case, 128, base2=True),
        "float32 weights": one_pass(case),
        "one pass, rounded weights": one_pass(case, dtype),
        "weights normalised, then rounded": one_pass(case, dtype, normalised=True),
        "split in 4": merged(case, (n // 4, n // 2, 3 * n // 4)),
        "window and the rest apart": merged(case, (_WINDOW // 2,) if kind == "window" else (_WINDOW,)),
        "float64": one_pass(case, torch.float64, work=torch.float64),
    }
    faults: dict[str, Fault] = {
        "sink ignored": Fault(sinks=0),
        "sink counted twice": Fault(sinks=2),
        "sink of the neighbouring head": Fault(sink_of_neighbour=True),
        "sink inside the lse": Fault(sink_in_lse=True),
        "running sum not rescaled": Fault(rescale=False),
        "running sum in bf16": Fault(spill=torch.bfloat16),
        "scores in bf16": Fault(scores=torch.bfloat16),
    }
    if dtype != _F32:
        faults["softmax weights truncated"] = Fault(cut_weights=True)
        faults["store truncates"] = Fault(cut_out=True)
    else:
        faults["softmax weights in bf16"] = Fault()
    faulty = {name: online(case, fault=fault) for name, fault in faults.items()}
    if dtype == _F32:
        faulty["softmax weights in bf16"] = online(case, weights=torch.bfloat16)
    for name in FAULTY_ROWS:
        broken = tables(name)
        if broken is not case:
            faulty[name] = online(broken)
    name = f"{str(dtype).removeprefix('torch.')} {kind}, scores {spread:g}"
    return Trial("attention", name, data, wants, n, base, honest, faulty, fixed=(1,))


FAULTY_ROWS = (
    "newest key dropped",
    "one row wrong",
    "four rows wrong",
    "-1 reads row 0",
    "one row of the future",
    "window one too long",
    "listed twice, counted once",
    "scale of 448 channels",
)


def _case(kind: str, dtype: torch.dtype, data: str, spread: float, rng: torch.Generator) -> Callable[[str], Case]:
    """Pools of window and compressed rows, and the index lists of the right and the wrong kernels."""
    position = {"window": 300, "csa": 4000, "hca": 40_000}[kind]
    pool = _normal(draw(data, (position // 128 + 2 if kind == "hca" else 1200, _D), rng)).to(dtype)
    recent = _normal(draw(data, (_WINDOW + _T + 1, _D), rng)).to(dtype)  # rows position - WINDOW ..
    q = (_normal(torch.randn(_T, _H, _D, generator=rng)) * spread).to(dtype)
    sink = torch.randn(_H, generator=rng) + 2
    listed = torch.stack([torch.randperm(1000, generator=rng)[:_TOP] for _ in range(_T)])
    listed[1, 100:140] = -1  # a -1 may stand anywhere
    listed[4, 300:] = -1
    listed[2, 7] = listed[2, 9]  # a row counts as often as it is listed

    def make(fault: str) -> Case:
        lists, masks = [], []
        for t in range(_T):
            length = _WINDOW + (fault == "window one too long")
            own = torch.arange(t + _WINDOW + 1 - length + 1, t + _WINDOW + 2)
            rows = [recent[own]]
            seen = [torch.ones(length, dtype=torch.bool)]
            if fault == "newest key dropped":
                seen[0][-1] = False
            if kind == "csa":
                ids = listed[t].clone()
                mask = ids >= 0
                if fault == "-1 reads row 0":
                    mask = torch.ones_like(mask)
                if fault == "listed twice, counted once" and t == 2:
                    mask[7] = False
                if fault in ("one row wrong", "four rows wrong"):
                    wrong = 1 if fault == "one row wrong" else 4
                    ids[:wrong] = 1000 + torch.arange(wrong)
                rows.append(pool[ids.clamp_min(0)])
                seen.append(mask)
            if kind == "hca":
                count, most = (position + t + 1) // 128, (position + _T) // 128 + 1
                rows.append(pool[:most])
                seen.append(torch.arange(most) < count + (fault == "one row of the future"))
            lists.append(torch.cat(rows))
            masks.append(torch.cat(seen))
        scale = (448 if fault == "scale of 448 channels" else _D) ** -0.5
        return Case(q, torch.stack(lists), torch.stack(masks), sink, scale, dtype)

    right = make("")
    only = {
        "csa": {"one row wrong", "four rows wrong", "-1 reads row 0", "listed twice, counted once"},
        "hca": {"one row of the future"},
    }
    elsewhere = {name for k, names in only.items() if k != kind for name in names}
    return lambda fault: right if not fault or fault in elsewhere else make(fault)


def _normal(x: Tensor) -> Tensor:
    return x * x.square().mean(-1, keepdim=True).rsqrt()

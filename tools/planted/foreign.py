"""Acceptance rules that other projects use, applied to the same outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.numerics import Sums

_ASSERT_CLOSE = {torch.float32: (1e-5, 1.3e-6), torch.float16: (1e-5, 1e-3), torch.bfloat16: (1e-5, 1.6e-2)}
_VLLM = {torch.float32: (1e-5, 1.3e-6), torch.float16: (1e-3, 1e-3), torch.bfloat16: (1e-3, 1.6e-2)}
_FLAGGEMS = {torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}

# name -> where it is written
SOURCES = {
    "vLLM": "`vllm/ir/tolerances.py`, DEFAULT_TOLERANCES: fp32 1e-5 / 1.3e-6, fp16 1e-3 / 1e-3, bf16 1e-3 / 1.6e-2",
    "FlagGems": "`src/flag_gems/testing/__init__.py`: atol 1e-4 x reduced length; rtol 1.3e-6, 1e-3, 1.6e-2",
    "DeepGEMM": "`deep_gemm/testing/numeric.py` calc_diff < 1e-3, the limit of its FP8 tests",
    "ggml": "`tests/test-backend-ops.cpp`: normalised mean squared error < 5e-4, the limit of matrix products",
    "torch": "`torch.testing.assert_close` defaults: atol 1e-5; rtol 1.3e-6, 1e-3, 1.6e-2",
    "flash-attention": "`tests/test_flash_attn.py`: max error <= 2 x that of PyTorch in the same dtype",
}


def passes(rule: str, got: Tensor, want: Sums, depth: int) -> bool:
    """Whether `rule` accepts `got`. Rules with a table compare with the reference rounded to the output's dtype."""
    dtype = want.dtype
    y, r = got.double(), want.reference.double()
    stored = r.to(dtype).double()
    match rule:
        case "vLLM":
            return _close(y, stored, *_VLLM[dtype])
        case "FlagGems":
            return _close(y, stored, 1e-4 * depth, _FLAGGEMS[dtype])
        case "torch":
            return _close(y, stored, *_ASSERT_CLOSE[dtype])
        case "DeepGEMM":
            y, r = y.nan_to_num(), r.nan_to_num(posinf=0.0)
            return bool(1 - 2 * (y * r).sum() / (y * y + r * r).sum().clamp_min(1e-300) < 1e-3)
        case "ggml":
            return bool((y - r).nan_to_num().square().sum() / r.nan_to_num(posinf=0.0).square().sum() < 5e-4)
        case "flash-attention":
            assert want.baseline is not None
            own = (want.baseline.double() - r).nan_to_num().abs().max()
            return bool((y - r).nan_to_num(nan=torch.inf).abs().max() <= 2 * own)
    raise ValueError(rule)


def _close(y: Tensor, r: Tensor, atol: float, rtol: float) -> bool:
    same = (y == r) | (y.isnan() & r.isnan())
    return bool((same | ((y - r).abs() <= atol + rtol * r.abs())).all())

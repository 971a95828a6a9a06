"""Cache layouts and weight schemes on MLUs. Caches are plain rows: bfloat16 for torch_mlu_ops, or float32."""

from __future__ import annotations

from hal.ops.matmul import ACTIVATIONS, SCHEMES

CACHES = ("rows_bf16_fp8", "rows_bf16", "rows_f32")
"""Of window and compressed rows, best first where a checkpoint asks for simulated FP8."""

INDEX = ("index_bf16_mxfp4", "rows_bf16", "rows_f32")
"""Of the indexer's rows."""

PAGED_ROWS = ("rows_bf16_fp8", "rows_bf16")
INDEX_ROWS = ("index_bf16_mxfp4", "rows_bf16")
"""Layouts whose pages are bfloat16 rows, as torch_mlu_ops addresses them."""

INT8 = ("w8a8_int8", "w4a8_int")
"""Weight schemes that the cards multiply as they are."""

WEIGHTS = (*INT8, *(scheme for scheme in SCHEMES if scheme not in ("float64", *INT8)))
"""Weight schemes, best first; others than int8 and plain ones are dequantised on the device, some experts at a time."""

EXACT_IN_BF16 = ("bf16", "fp8_block128", "mxfp4")
"""Weight schemes whose values bfloat16 holds exactly, ue8m0 scales included."""

DTYPES = ("bfloat16", "float16", "float32")
"""Of activations; chips without bfloat16 leave it out."""

__all__ = ["ACTIVATIONS", "CACHES", "DTYPES", "EXACT_IN_BF16", "INDEX", "INDEX_ROWS", "INT8", "PAGED_ROWS", "WEIGHTS"]

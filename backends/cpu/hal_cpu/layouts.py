"""Cache layouts and weight schemes that plain CPUs compute with: all that torch can dequantise."""

from __future__ import annotations

from hal.ops.matmul import ACTIVATIONS, SCHEMES

CACHES = ("rows_bf16_fp8", "rows_bf16", "rows_f32", "rows_f64", "v4_584", "v4_640")
"""Of window and compressed rows, best first where a checkpoint asks for simulated FP8."""

INDEX = ("index_mxfp4_68", "index_bf16_mxfp4", "index_fp8_132", "index_int8_130", "rows_bf16", "rows_f32", "rows_f64")
"""Of the indexer's rows, best first: a million tokens' rows in FP4 are 17 MiB a layer."""

WEIGHTS = SCHEMES
"""Weight schemes."""

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Of activations; half precision is multiplied in float32."""

__all__ = ["ACTIVATIONS", "CACHES", "DTYPES", "INDEX", "WEIGHTS"]

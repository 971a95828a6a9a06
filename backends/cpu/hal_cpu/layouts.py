"""Cache layouts and weight schemes that plain CPUs compute with: all that torch can dequantise."""

from __future__ import annotations

CACHES = ("rows_bf16_fp8", "rows_bf16", "rows_f32", "rows_f64", "v4_584", "v4_640")
"""Of window and compressed rows, best first where a checkpoint asks for simulated FP8."""

INDEX = ("index_mxfp4_68", "index_bf16_mxfp4", "index_fp8_132", "index_int8_130", "rows_bf16", "rows_f32", "rows_f64")
"""Of the indexer's rows, best first: a million tokens' rows in FP4 are 17 MiB a layer."""

WEIGHTS = ("fp8_block128", "mxfp4", "mxfp8", "w8a8_int8", "w4a8_int", "bf16", "float32", "float64")
"""Weight schemes."""

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Of activations; half precision is multiplied in float32."""

ACTIVATIONS = ("none", "e4m3_128", "e4m3_64", "e4m3_32", "e2m1_32", "int8_token")
"""Activation quantisers."""

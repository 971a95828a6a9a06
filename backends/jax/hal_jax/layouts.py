"""Cache layouts, weight schemes and quantisers that the kernels compute with, best first. See hal's docs/formats."""

from __future__ import annotations

CACHES = ("rows_bf16_fp8", "rows_bf16", "rows_f32", "v4_584", "v4_640")
"""Of window and compressed rows."""

INDEX = ("index_bf16_mxfp4", "index_mxfp4_68", "index_fp8_132", "index_int8_130", "rows_bf16", "rows_f32")
"""Of the indexer's rows."""

WEIGHTS = ("fp8_block128", "mxfp4", "mxfp8", "w8a8_int8", "w4a8_int", "w4a8_int_256", "bf16", "float32")

ACTIVATIONS = ("none", "e4m3_128", "e4m3_64", "e4m3_32", "e2m1_32", "int8_token")

DTYPES = ("bfloat16", "float16", "float32")

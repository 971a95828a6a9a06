"""Cache layouts, weight schemes and quantisers that the kernels compute with, best first."""

from __future__ import annotations

CACHES = ("rows_bf16_fp8", "v4_584", "rows_bf16", "rows_f32")
"""Of window and compressed rows."""

INDEX = ("index_mxfp4_68", "index_fp8_132", "index_bf16_mxfp4", "rows_bf16", "rows_f32")
"""Of the indexer's rows."""

WEIGHTS = ("fp8_block128", "mxfp4", "mxfp8", "bf16", "float32")

ACTIVATIONS = ("none", "e4m3_128", "e4m3_64", "e4m3_32", "e2m1_32", "int8_token")

DTYPES = ("bfloat16", "float16", "float32")

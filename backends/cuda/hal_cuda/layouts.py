"""Cache layouts, weight schemes and quantisers that the CUDA kernels compute with, best first."""

from __future__ import annotations

CACHES = ("v4_584", "rows_bf16", "rows_bf16_fp8")
"""Of window and compressed rows: half the bytes of bfloat16, with the values that the checkpoint was trained for."""

INDEX = ("index_mxfp4_68", "index_fp8_132", "index_bf16_mxfp4", "rows_bf16")
"""Of the indexer's rows."""

STORED = tuple(dict.fromkeys((*CACHES, *INDEX, "rows_f32")))
"""That rows can be written in."""

QUANTISED = ("fp8_block128", "mxfp4", "mxfp8")
"""Weight schemes whose values are read as bfloat16 or multiplied as they are."""

WEIGHTS = (*QUANTISED, "w8a8_int8", "bf16")

BLOCK_ACTIVATIONS = ("e4m3_128", "e4m3_64", "e4m3_32", "e2m1_32")
ACTIVATIONS = ("none", *BLOCK_ACTIVATIONS, "int8_token")

DTYPES = ("bfloat16", "float16", "float32")
"""Of rows that are only read, not multiplied."""

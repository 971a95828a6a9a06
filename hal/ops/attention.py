"""Contracts of attention: compressing hidden states, choosing entries, attending."""

from __future__ import annotations

from hal.contract import Contract

__all__ = ["CONTRACTS"]

GARBAGE = "hal.conformance.laws.memory:INERT_GARBAGE"
PAGES = "hal.conformance.laws.memory:PERMUTED_PAGES"
STRIDES = "hal.conformance.laws.memory:SPREAD_OUT"
ROUND_TRIP = "hal.conformance.laws.memory:ROUND_TRIP"
CHUNKS = "hal.conformance.laws.pieces:CHUNKS"
DENSE = "hal.conformance.laws.listed:DENSE"

TOKENS = (0, 1 << 20)
REQUESTS = (0, 1 << 16)
ENTRIES = (0, 1 << 20)

EMPTY = "Zero tokens, zero rows and requests without new tokens are legal; nothing is returned for them."
SLOT = (
    "A request that starts at position 0 reads nothing that its slot held before: rows and states are only read where "
    "a position says that this request wrote them."
)

COMPRESS = Contract(
    name="attn.compress",
    version=1,
    signature=(
        "x[tokens hidden]:float, wkv[width hidden], wgate[width hidden], ape[ratio width]:f32, norm[head_dim], "
        "rope: Rope, batch: Batch, state!: State, cache!: Cache; "
        "ratio: int, overlap: bool, hadamard: bool, eps: float ->"
    ),
    reference="hal.reference.compression:compress",
    doc="Compress hidden states into entries: project, pool each window, norm, rotate, store. CSA is ratio 4 with "
    "overlap, HCA ratio 128 without.",
    edges={
        "short prompt": "Fewer tokens than a window emit no entry and only fill the state.",
        "chunks": "Entries do not depend on how the tokens were cut into batches.",
        "reused slot": SLOT,
        "first window": "With overlap, window 0 has no previous window: its softmax runs over its own tokens only.",
        "entry position": "Entry w is rotated by the first position of its window, w * ratio.",
        "empty": EMPTY,
    },
    numerics="sum",
    dynamic={"tokens": TOKENS, "requests": REQUESTS, "entries": ENTRIES},
    parts=("attn.compress_pool", "attn.store"),
    samples="hal.conformance.samples.compression:compress",
    laws=(GARBAGE, PAGES, STRIDES, CHUNKS),
)

COMPRESS_POOL = Contract(
    name="attn.compress_pool",
    version=1,
    signature=(
        "kv[tokens width]:f32, score[tokens width]:f32, ape[ratio width]:f32, batch: Batch, state!: State; "
        "ratio: int, overlap: bool -> entries[entries head_dim]:f32"
    ),
    reference="hal.reference.compression:compress_pool",
    doc="Pool projected tokens into entries by a softmax over each window, per channel; keep the tail in the state.",
    edges={
        "ape": "score arrives without ape; it is added once, by position mod ratio, and the state holds the sum.",
        "short prompt": "Fewer tokens than a window emit no entry and only fill the state.",
        "completing token": "Entry w is emitted by the batch that holds position w*ratio + ratio-1.",
        "first window": "With overlap, window 0 has no previous window: its softmax runs over its own tokens only.",
        "reused slot": SLOT,
        "empty": EMPTY,
    },
    numerics="sum",
    dynamic={"tokens": TOKENS, "requests": REQUESTS, "entries": ENTRIES},
    samples="hal.conformance.samples.compression:compress_pool",
    laws=(GARBAGE, STRIDES, CHUNKS),
)

STORE = Contract(
    name="attn.store",
    version=1,
    signature=(
        "values[rows head_dim]:float, norm[head_dim]?, rope: Rope, positions[rows]:i64, slots[rows]:i64, "
        "cache!: Cache; hadamard: bool, eps: float ->"
    ),
    reference="hal.reference.compression:store",
    doc="RMS norm, RoPE on the last channels, optional orthonormal Hadamard, the layout's own quantiser, into physical "
    "rows.",
    edges={
        "slot -1": "A physical row of -1 is skipped; what its value holds does not matter.",
        "no norm": "Where norm is None the values have their norm already.",
        "other rows": "Rows that no slot names keep every bit.",
        "empty": EMPTY,
    },
    numerics="codes",
    dynamic={"rows": TOKENS},
    samples="hal.conformance.samples.compression:store",
    laws=(STRIDES, ROUND_TRIP),
)

SELECT = Contract(
    name="attn.select",
    version=1,
    signature=(
        "q[tokens index_heads index_dim]:float, weights[tokens index_heads]:float, rope: Rope, batch: Batch, "
        "cache: Cache; top_k: int, ratio: int, hadamard: bool, scale: float -> rows[tokens top_k]:i32"
    ),
    reference="hal.reference.selection:select",
    doc="Lightning indexer: the best-scored visible entries of each token, for attn.attend.",
    edges={
        "few visible": "Fewer visible entries than top_k: all of them are returned, then -1.",
        "none visible": "A token that sees no entry gets -1 everywhere.",
        "completing token": "The token that completes an entry sees it: entries j < (position+1) // ratio are visible.",
        "ties": "Of equal scores the lowest entry wins; ReLU makes many scores exactly 0.",
        "order": "Chosen entries come first; their order among each other is free.",
        "reused slot": SLOT,
        "empty": EMPTY,
    },
    numerics="selection",
    dynamic={"tokens": TOKENS, "requests": REQUESTS, "entries": ENTRIES},
    parts=("attn.index_scores",),
    samples="hal.conformance.samples.attention:select",
    laws=(GARBAGE, PAGES, STRIDES, CHUNKS),
)

INDEX_SCORES = Contract(
    name="attn.index_scores",
    version=1,
    signature=(
        "q[tokens index_heads index_dim]:float, weights[tokens index_heads]:float, batch: Batch, cache: Cache; "
        "ratio: int, scale: float -> scores[tokens entries]:f32"
    ),
    reference="hal.reference.selection:index_scores",
    doc="Sum over heads of weight * scale * relu(q . k), for every entry a token sees; q is already as the rows are.",
    edges={
        "invisible": "An entry that a token does not see scores -inf, other requests' columns included.",
        "width": "As many columns as the token that sees most sees entries.",
        "negative weights": "Weights may be negative, scores too.",
        "empty": EMPTY,
    },
    numerics="sum",
    dynamic={"tokens": TOKENS, "requests": REQUESTS, "entries": ENTRIES},
    samples="hal.conformance.samples.attention:index_scores",
    laws=(GARBAGE, PAGES, STRIDES, CHUNKS),
)

ATTEND = Contract(
    name="attn.attend",
    version=1,
    signature=(
        "q[tokens heads head_dim]:float, window: Cache, compressed: Cache?, rows[tokens top_k]:i32?, sink[heads]:f32?, "
        "batch: Batch; scale: float, window_size: int, ratio: int "
        "-> out[tokens heads head_dim]:float, lse[tokens heads]:f32"
    ),
    reference="hal.reference.attention:attend",
    doc="One softmax over a token's window and its compressed entries (listed, a visible prefix, or none), keys and "
    "values shared, with a sink per head.",
    edges={
        "row -1": "-1 anywhere in a list is skipped, at its front and in its middle too; an entry counts as often as "
        "it is listed. A call may promise layouts rows=selected: min(top_k, visible) different entries, then -1.",
        "nothing seen": "A query that sees nothing has out 0 and lse +inf.",
        "masked block": "Any number of leading -1 changes nothing: no NaN from a first block without rows.",
        "sink": "The sink adds exp(sink) to the denominator only; lse does not contain it.",
        "lse": "Natural logarithm. A call may say layouts lse=none; then lse may be None and is not looked at.",
        "window": "Rows max(0, p-window_size+1)..p, the query's own included; window_size 0 is no window.",
        "completing token": "The prefix holds entries j < (p+1) // ratio: the entry completed by p itself is seen.",
        "unused memory": "Rows that no query sees may hold anything, NaN included.",
        "reused slot": SLOT,
        "empty": EMPTY,
    },
    numerics="sum",
    dynamic={"tokens": TOKENS, "requests": REQUESTS},
    samples="hal.conformance.samples.attention:attend",
    laws=(GARBAGE, PAGES, STRIDES, CHUNKS, DENSE),
    promises={"rows": "any", "lse": "wanted"},
)

CONTRACTS = (COMPRESS, COMPRESS_POOL, STORE, SELECT, INDEX_SCORES, ATTEND)

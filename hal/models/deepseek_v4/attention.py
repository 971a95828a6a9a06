"""DeepSeek-V4's attention sub-layer: projections in torch, everything that touches a cache through bound operators.

A block is sliding-window (`swa`), Compressed Sparse (`csa`: ratio 4, an indexer chooses entries) or Heavily Compressed
(`hca`: every complete entry is seen). DeepSeek-V4 technical report, section 2.3; official `inference/model.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hal import overlap
from hal.batch import Batch
from hal.models.deepseek_v4.caches import LayerCaches
from hal.models.deepseek_v4.calls import attend_name, compress_name
from hal.models.deepseek_v4.config import DeepseekV4Config
from hal.models.deepseek_v4.layers import Linear, Norm, Operators, frozen, inverse_rms, wide
from hal.models.deepseek_v4.weights import Weights
from hal.rope import Rope, rotate


def rope_of(config: DeepseekV4Config, layer: int) -> Rope:
    """Frequencies of a block: plain for sliding-window and MTP blocks, YaRN on a larger base for the others."""
    if config.ratio(layer) == 0:
        return Rope(config.qk_rope_head_dim, config.rope_theta)
    return Rope(
        config.qk_rope_head_dim,
        config.compress_rope_theta,
        config.rope_factor,
        config.rope_original_length,
        config.rope_beta_fast,
        config.rope_beta_slow,
    )


class Compressor(nn.Module):
    """Weights of one compressor; `forward` advances its state and stores the entries that the batch completes."""

    def __init__(self, weights: Weights, prefix: str, operators: Operators, operator: str, rope: Rope) -> None:
        super().__init__()
        self.wkv = frozen(weights.plain(f"{prefix}wkv.weight"))
        self.wgate = frozen(weights.plain(f"{prefix}wgate.weight"))
        self.ape = frozen(weights.full(f"{prefix}ape"))
        self.norm = Norm(weights.full(f"{prefix}norm.weight"), weights.config.rms_norm_eps)
        self.operator, self.rope = operators[operator], rope

    def forward(self, x: Tensor, batch: Batch, state: object, cache: object) -> None:
        self.operator(x, self.wkv, self.wgate, self.ape, self.norm.weight, self.rope, batch, state, cache)


class Indexer(nn.Module):
    """The lightning indexer: chooses which compressed entries a token of a CSA block attends to."""

    def __init__(self, weights: Weights, prefix: str, operators: Operators, rope: Rope) -> None:
        super().__init__()
        config = weights.config
        self.heads, self.rope = config.index_n_heads, rope
        self.wq_b = Linear(weights.linear(f"{prefix}wq_b"), operators.get("linear.index_wq_b"))
        self.weights_proj = Linear(weights.plain(f"{prefix}weights_proj.weight"))
        self.compressor = Compressor(weights, f"{prefix}compressor.", operators, "index.compress", rope)
        self.select = operators["index.select"]

    def forward(self, x: Tensor, latent: Tensor, batch: Batch, caches: LayerCaches) -> Tensor:
        """Rows `[tokens, top_k]` int32, -1 padded. The index cache is filled even when nothing is to be chosen yet."""
        self.compressor(x, batch, caches.index_state, caches.index)
        q = self.wq_b(latent).unflatten(-1, (self.heads, -1))
        rows: Tensor = self.select(q, self.weights_proj(x), self.rope, batch, caches.index)
        return rows


class Attention(nn.Module):
    """Queries from a low-rank latent, one shared head as key and value, grouped low-rank output projection."""

    streams = 0
    """Side streams for what is independent: queries, the indexer, and what later tokens will attend to."""

    def __init__(self, weights: Weights, prefix: str, operators: Operators, layer: int) -> None:
        super().__init__()
        config = weights.config
        kind, ratio = config.kind(layer), config.ratio(layer)
        self.heads, self.groups, self.eps = config.num_attention_heads, config.o_groups, config.rms_norm_eps
        self.rope = rope_of(config, layer)
        self.attn_sink = frozen(weights.full(f"{prefix}attn_sink"))
        self.wq_a, self.wq_b, self.wkv, self.wo_b = (
            Linear(weights.linear(prefix + name), operators.get(f"linear.{name}"))
            for name in ("wq_a", "wq_b", "wkv", "wo_b")
        )
        self.wo_a = frozen(weights.dense(f"{prefix}wo_a"))
        self.q_norm = Norm(weights.full(f"{prefix}q_norm.weight"), self.eps)
        self.kv_norm = Norm(weights.full(f"{prefix}kv_norm.weight"), self.eps)
        self.compressor = self.indexer = None
        if kind != "swa":
            name = compress_name(kind, ratio)
            self.compressor = Compressor(weights, f"{prefix}compressor.", operators, name, self.rope)
        if kind == "csa":
            self.indexer = Indexer(weights, f"{prefix}indexer.", operators, self.rope)
        self.store, self.attend = operators["window.store"], operators[attend_name(kind, ratio)]

    def forward(self, x: Tensor, batch: Batch, caches: LayerCaches) -> Tensor:
        """`x [tokens, hidden]` -> `[tokens, hidden]`; the caches of this block advance by the batch."""
        latent = self.q_norm(self.wq_a(x))
        chosen, q, _ = overlap(
            x.device,
            self.streams,
            lambda: None if self.indexer is None else self.indexer(x, latent, batch, caches),
            lambda: self._queries(latent, batch),
            lambda: self._remember(x, batch, caches),
        )
        out, _ = self.attend(q, caches.window, caches.compressed, chosen, self.attn_sink, batch)

        out = rotate(out, *self._angles(batch), inverse=True).flatten(1).unflatten(1, (self.groups, -1))
        per_group = self.wo_a.unflatten(0, (self.groups, -1))
        y: Tensor = self.wo_b(torch.einsum("tgi,goi->tgo", out, per_group).flatten(1))
        return y

    def _angles(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.derive(("rope", self.rope), lambda: self.rope.cos_sin(batch.positions))

    def _queries(self, latent: Tensor, batch: Batch) -> Tensor:
        """Normalised and rotated, `[tokens, heads, head_dim]`."""
        q = self.wq_b(latent).unflatten(-1, (self.heads, -1))
        return rotate(q * inverse_rms(wide(q), self.eps).to(q.dtype), *self._angles(batch))

    def _remember(self, x: Tensor, batch: Batch, caches: LayerCaches) -> None:
        """The window gets the batch's rows, the compressor advances."""
        rows = batch.derive(
            ("deepseek_v4", "window rows"), lambda: caches.window.physical(batch.slots[batch.request], batch.positions)
        )
        self.store(self.wkv(x), self.kv_norm.weight, self.rope, batch.positions, rows, caches.window)
        if self.compressor is not None:
            self.compressor(x, batch, caches.state, caches.compressed)

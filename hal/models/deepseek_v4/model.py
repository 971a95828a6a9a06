"""DeepSeek-V4, written once against hal's contracts: which kernel computes an operator is the plan's decision, not the
model's.

DeepSeek-V4 technical report, section 2; official `inference/model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hal
from hal.batch import Batch
from hal.models.deepseek_v4.attention import Attention
from hal.models.deepseek_v4.caches import Caches, LayerCaches
from hal.models.deepseek_v4.config import DeepseekV4Config
from hal.models.deepseek_v4.experts import MoE
from hal.models.deepseek_v4.layers import HyperConnection, HyperHead, Linear, Norm, Operators, frozen, wide
from hal.models.deepseek_v4.operators import bound
from hal.models.deepseek_v4.tensors import block_prefix
from hal.models.deepseek_v4.weights import RandomTensors, Weights


class Block(nn.Module):
    """Attention and mixture of experts, each inside its hyper-connection."""

    def __init__(self, weights: Weights, operators: Operators, layer: int) -> None:
        super().__init__()
        prefix, eps = block_prefix(weights.config, layer), weights.config.rms_norm_eps
        self.attn = Attention(weights, f"{prefix}attn.", operators, layer)
        self.ffn = MoE(weights, f"{prefix}ffn.", operators, layer)
        self.attn_norm = Norm(weights.full(f"{prefix}attn_norm.weight"), eps)
        self.ffn_norm = Norm(weights.full(f"{prefix}ffn_norm.weight"), eps)
        self.hc_attn = _hyper_connection(weights, f"{prefix}hc_attn_", operators)
        self.hc_ffn = _hyper_connection(weights, f"{prefix}hc_ffn_", operators)

    def forward(self, streams: Tensor, token_ids: Tensor, batch: Batch, caches: LayerCaches) -> Tensor:
        """`streams [tokens, n, hidden]` -> the same."""
        streams = self.hc_attn(streams, lambda x: self.attn(self.attn_norm(x), batch, caches))
        out: Tensor = self.hc_ffn(streams, lambda x: self.ffn(self.ffn_norm(x), token_ids))
        return out


class DraftBlock(Block):
    """Multi-token prediction: a block that drafts the token after next from a main stream and the next token."""

    def __init__(self, weights: Weights, operators: Operators, layer: int) -> None:
        super().__init__(weights, operators, layer)
        prefix, eps = block_prefix(weights.config, layer), weights.config.rms_norm_eps
        self.e_proj = Linear(weights.linear(f"{prefix}e_proj"), operators.get("linear.e_proj"))
        self.h_proj = Linear(weights.linear(f"{prefix}h_proj"), operators.get("linear.h_proj"))
        self.enorm = Norm(weights.full(f"{prefix}enorm.weight"), eps)
        self.hnorm = Norm(weights.full(f"{prefix}hnorm.weight"), eps)
        self.norm = Norm(weights.full(f"{prefix}norm.weight"), eps)
        self.hc_head = _hyper_head(weights, prefix)

    def join(self, embedded: Tensor, streams: Tensor) -> Tensor:
        """Next tokens' embeddings `[tokens, hidden]` and main streams -> streams `[tokens, n, hidden]` to enter."""
        token = self.e_proj(self.enorm(embedded)).unsqueeze(-2)
        hidden = self.h_proj(self.hnorm(streams).flatten(0, 1)).view_as(streams)
        joined: Tensor = token + hidden
        return joined


class DeepseekV4(nn.Module):
    """A DeepSeek-V4: `from_checkpoint`, `random` or `from_tensors` make one.

    `simulate` says whether the official code's quantisation of caches and activations is on; `numerics` says exactly
    what is. Parameters ask for no gradient until `requires_grad_(True)`; `logits` is differentiable.
    """

    def __init__(self, weights: Weights, operators: Operators, plan: hal.Plan, context: int | None = None) -> None:
        super().__init__()
        config = weights.config
        self.plan = plan
        self.config, self.numerics, self.device = config, weights.numerics, weights.device
        self.context = context or config.max_position_embeddings
        main = config.num_hidden_layers
        self.embed = frozen(weights.plain("embed.weight"))
        self.layers = nn.ModuleList(Block(weights, operators, layer) for layer in range(main))
        self.hc_head = _hyper_head(weights, "")
        self.norm = Norm(weights.full("norm.weight"), config.rms_norm_eps)
        self.head = frozen(weights.full("head.weight"))
        self.mtp = nn.ModuleList(DraftBlock(weights, operators, layer) for layer in config.layers[main:])
        for block in (*self.layers, *self.mtp):
            block.attn.streams = block.ffn.streams = plan.target.streams

    @property
    def simulate(self) -> bool:
        """Whether quantisation is simulated as in the official inference code."""
        return self.numerics.packed

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        backend: str | None = None,
        dtype: str | None = None,
        simulate: bool | None = None,
        context: int | None = None,
    ) -> DeepseekV4:
        """Load a safetensors checkpoint: one file or sharded, official or Hugging Face names, quantised or not.

        Args:
            path: a folder with `config.json` and `*.safetensors`.
            backend: as `HAL_BACKEND`; by default what the environment says.
            dtype: `float32`, `bfloat16` or `float64`; by default float32 on CPUs, bfloat16 on other chips.
            simulate: the official code's simulated quantisation; by default on where the checkpoint is quantised.
            context: most tokens a request may hold; by default the configuration's maximum. Kernels are planned for it.

        Raises:
            CheckpointError: something is missing, extra, truncated, misshapen or NaN; the text names file and tensor.
            ConfigError: the configuration is not a DeepSeek-V4's.
            PlanError: the chip cannot run it; every blocker is listed.
        """
        from hal.models.deepseek_v4.checkpoint import Checkpoint

        checkpoint = Checkpoint.open(path)
        checkpoint.check()
        return cls.from_tensors(
            checkpoint.config, checkpoint, backend=backend, dtype=dtype, simulate=simulate, context=context
        )

    @classmethod
    def random(
        cls, config: DeepseekV4Config, seed: int, *, backend: str | None = None, dtype: str | None = None
    ) -> DeepseekV4:
        """A model with random weights, without simulated quantisation: to train, or to test."""
        return cls.from_tensors(config, RandomTensors(config, seed), backend=backend, dtype=dtype, simulate=False)

    @classmethod
    def from_tensors(
        cls,
        config: DeepseekV4Config,
        tensors: Mapping[str, Tensor],
        *,
        backend: str | None = None,
        dtype: str | None = None,
        simulate: bool | None = None,
        context: int | None = None,
    ) -> DeepseekV4:
        """A model of tensors under official names; arguments as in `from_checkpoint`."""
        simulate = config.quantization is not None if simulate is None else simulate
        numerics, operators, plan = bound(config, backend=backend, dtype=dtype, simulate=simulate, context=context)
        return cls(Weights(tensors, config, numerics, plan.target.device_type), operators, plan, context)

    def caches(self, *, tokens: int, requests: int = 1, chunk: int | None = None, block: int = 64) -> Caches:
        """Empty caches for `requests` requests of `tokens` tokens together; arguments as in `Caches`."""
        return Caches(
            self.config, self.numerics, tokens=tokens, requests=requests, chunk=chunk, block=block, device=self.device
        )

    def forward(self, token_ids: Tensor, batch: Batch, caches: Caches) -> Tensor:
        """One step of any mix of prefill and decode.

        Args:
            token_ids: `[tokens]` int64, the requests' new tokens one after another as `batch` says.
            batch: positions and slots; `caches.reserve` made room for them.

        Returns:
            Streams `[tokens, n, hidden]` for `head_logits` and `draft`.
        """
        streams = F.embedding(token_ids, self.embed).unsqueeze(-2).repeat(1, self.config.hc_mult, 1)
        for block, layer in zip(self.layers, caches.layers, strict=False):
            streams = block(streams, token_ids, batch, layer)
        return streams

    def head_logits(self, streams: Tensor) -> Tensor:
        """`[rows, n, hidden]` -> logits `[rows, vocab]` float32."""
        return self._project(self.norm(self.hc_head(streams)))

    def draft(self, streams: Tensor, next_ids: Tensor, batch: Batch, caches: Caches, index: int = 0) -> Tensor:
        """MTP block `index` on main streams `[tokens, n, hidden]` and the tokens that follow them, `next_ids [tokens]`.

        Returns streams for `draft_logits`; the logits at a position predict the token after next.
        """
        block = self._draft_block(index)
        joined = block.join(F.embedding(next_ids, self.embed), streams)
        out: Tensor = block(joined, next_ids, batch, caches.layers[self.config.num_hidden_layers + index])
        return out

    def draft_logits(self, streams: Tensor, index: int = 0) -> Tensor:
        """Logits `[rows, vocab]` float32 of an MTP block's streams."""
        block = self._draft_block(index)
        return self._project(block.norm(block.hc_head(streams)))

    def _draft_block(self, index: int) -> DraftBlock:
        block = self.mtp[index]
        assert isinstance(block, DraftBlock)
        return block

    def _project(self, x: Tensor) -> Tensor:
        return F.linear(wide(x), self.head)

    def logits(self, token_lists: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits `[tokens, vocab]` of every position of every sequence, in one differentiable pass."""
        streams, _, caches, lengths = self._whole(token_lists)
        del caches
        return list(self.head_logits(streams).split(lengths))

    def logits_with_drafts(self, token_lists: Sequence[Sequence[int]]) -> tuple[list[Tensor], list[Tensor]]:
        """As `logits`, and beside it the MTP block's: `[tokens - 1, vocab]`, row `t` predicts token `t + 2`."""
        streams, _, caches, lengths = self._whole(token_lists)
        keep = [position for length in lengths for position in (*(True,) * (length - 1), *(False,) * min(1, length))]
        following = torch.tensor(
            [t for tokens in token_lists for t in tokens[1:]], dtype=torch.int64, device=self.device
        )
        shorter = [max(0, length - 1) for length in lengths]
        batch = Batch.build(shorter, [0] * len(lengths), list(range(len(lengths))), self.device)
        drafted = self.draft(
            streams[torch.tensor(keep, dtype=torch.bool, device=self.device)], following, batch, caches
        )
        return list(self.head_logits(streams).split(lengths)), list(self.draft_logits(drafted).split(shorter))

    def _whole(self, token_lists: Sequence[Sequence[int]]) -> tuple[Tensor, Batch, Caches, list[int]]:
        lengths = [len(tokens) for tokens in token_lists]
        caches = self.caches(tokens=max(1, sum(lengths)), requests=max(1, len(lengths)))
        slots = [caches.open() for _ in lengths]
        caches.reserve([(slot, 0, length) for slot, length in zip(slots, lengths, strict=True)])
        batch = Batch.build(lengths, [0] * len(lengths), slots, self.device)
        token_ids = torch.tensor([t for tokens in token_lists for t in tokens], dtype=torch.int64, device=self.device)
        return self(token_ids, batch, caches), batch, caches, lengths


def _hyper_connection(weights: Weights, prefix: str, operators: Operators) -> HyperConnection:
    return HyperConnection(operators, *(weights.full(prefix + name) for name in ("fn", "base", "scale")))


def _hyper_head(weights: Weights, prefix: str) -> HyperHead:
    config = weights.config
    return HyperHead(
        *(weights.full(f"{prefix}hc_head_{name}") for name in ("fn", "base", "scale")),
        norm_eps=config.rms_norm_eps,
        eps=config.hc_eps,
    )

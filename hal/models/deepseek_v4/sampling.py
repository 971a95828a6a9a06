"""How the next token is chosen: greedily, or by temperature and top-p with reproducible random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hal.errors import ConfigError


@dataclass(frozen=True)
class Sampler:
    """Chooses tokens of one request.

    The random number of a position depends on `(seed, request, position)` only: not on the batch, the chunking, or
    whether drafts were tried.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it.
        top_p: keep the most likely tokens whose probabilities sum to at least this.
        seed: any integer.
        request: number of the request, so that equal prompts differ.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    request: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}", where="sampling", fix="use 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}", where="sampling", fix="use more than 0 and at most 1")

    def choose(self, logits: Tensor, position: int) -> int:
        """The token at `position` from `logits [vocab]`; among equal logits the lowest id wins when greedy."""
        if self.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits.detach().double().cpu() / self.temperature).softmax(-1)
        ordered, ids = probabilities.sort(descending=True, stable=True)
        total = ordered.cumsum(-1)
        kept = int((total - ordered < self.top_p).sum())
        point = self._uniform(position) * total[kept - 1]
        return int(ids[min(int(torch.searchsorted(total, point, right=True)), kept - 1)])

    def _uniform(self, position: int) -> Tensor:
        mixed = ((self.seed * 0x9E3779B1 + self.request) * 0x85EBCA77 + position) & (1 << 63) - 1
        return torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(mixed))

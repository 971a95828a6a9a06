"""One sample: everything a call needs, stated as data, and the arguments made from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hal.planning import Call


@dataclass(frozen=True)
class Sample:
    """Arguments of one call of `contract`.

    `title` names it inside its contract and seeds it. `make(draw)` returns the arguments in the order of the signature,
    always the same for the same `Draw`. A sample for `once` is a large one, which no law is tried on.
    """

    contract: str
    title: str
    make: Callable[[Draw], tuple[Any, ...]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Mapping[str, int] = field(default_factory=dict)
    once: bool = False

    @property
    def seed(self) -> int:
        """Seed of the random values: a hash of contract and title, so that a name is a reproduction."""
        return int.from_bytes(hashlib.sha256(f"{self.contract}/{self.title}".encode()).digest()[:6], "big")

    @property
    def call(self) -> Call:
        """The call to plan: static sizes, and dynamic sizes pinned to this sample's."""
        return Call(
            self.contract,
            name=self.title,
            sizes=dict(self.sizes),
            ranges={name: (size, size) for name, size in self.dynamic.items()},
            dtypes=dict(self.dtypes),
            layouts=dict(self.layouts),
            attributes=dict(self.attributes),
        )

    def arguments(self, device: torch.device | str = "cpu", garbage: float = torch.nan) -> tuple[Any, ...]:
        """Fresh arguments on `device`, `garbage` in memory that nobody may read.

        Two calls return equal values in distinct memory.
        """
        return self.make(Draw(self.seed, torch.device(device), garbage))


class Draw:
    """Seeded random tensors, drawn on the host so that every device gets the same bits."""

    def __init__(self, seed: int, device: torch.device, garbage: float = torch.nan) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device
        self.garbage = garbage

    def normal(self, *shape: int, dtype: str = "float32", std: float = 1.0) -> Tensor:
        """Normal values rounded to `dtype`."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * std
        return values.to(getattr(torch, dtype)).to(self.device)

    def uneven(self, *shape: int) -> Tensor:
        """Weights `[.., outputs, features]` of unit rows on average, magnitudes of which differ from block to block."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * shape[-1] ** -0.5
        for dim in (-2, -1):
            groups = torch.randn(*shape[:-2], -(-shape[dim] // 32), generator=self.generator, dtype=torch.float64)
            factors = torch.exp(0.7 * groups).repeat_interleave(32, -1)[..., : shape[dim]]
            values = values * factors.unsqueeze(-1 if dim == -2 else -2)
        made: Tensor = values.to(torch.float32).to(self.device)
        return made

    def heavy(self, *shape: int, dtype: str = "float32") -> Tensor:
        """Heavy-tailed values with outlier channels, as activations of trained networks are."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        values = values * torch.exp(0.5 * torch.randn(shape, generator=self.generator, dtype=torch.float64))
        if shape[-1] > 8:
            values[..., 3 :: shape[-1] // 4] *= 20
        return values.to(getattr(torch, dtype)).to(self.device)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Uniform integers in `[0, high)`."""
        return torch.randint(high, shape, generator=self.generator, dtype=dtype).to(self.device)

    def distinct(self, high: int, rows: int, count: int) -> Tensor:
        """Per row `count` different integers in `[0, high)`, int32."""
        return torch.rand(rows, high, generator=self.generator).topk(count).indices.int().to(self.device)

    def permutation(self, count: int) -> Tensor:
        """A random order of `count` things."""
        return torch.randperm(count, generator=self.generator).to(self.device)

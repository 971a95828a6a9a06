"""Launching: every kernel takes a one-dimensional grid of any size up to its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hal_triton.tuning import Config

_most_programs = 1 << 30


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, what it was given, and its configuration."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    config: Config


_instead: Callable[[Launch, int], None] | None = None


@contextmanager
def instead(of: Callable[[Launch, int], None]) -> Iterator[None]:
    """Inside, launches and their numbers of tiles go to `of` and nowhere else."""
    global _instead
    before, _instead = _instead, of
    try:
        yield
    finally:
        _instead = before


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches inside are noted and not run: for a compiler without a chip. Outputs hold whatever memory held."""
    noted: list[Launch] = []
    with instead(lambda launch, work: noted.append(launch)):
        yield noted


def limit_programs(count: int) -> None:
    """Never launch more than `count` programs; for chips on which a program per core is best (MLU)."""
    global _most_programs
    _most_programs = count


def launch(kernel: Any, work: int, config: Config, *arguments: Any, **constants: Any) -> None:
    """Run `kernel` over `work` tiles with the configuration's tile sizes; nothing is launched for no work."""
    if not work:
        return
    if _instead is not None:
        _instead(Launch(kernel, arguments, {**constants, **config.tiles}, config), work)
    else:
        grid = (min(work, _most_programs),)
        kernel[grid](*arguments, **constants, **config.tiles, num_warps=config.warps, num_stages=config.stages)


def tiles(length: int, size: int) -> int:
    """How many tiles of `size` cover `length`."""
    return -(-length // size)


def power_of_two(least: int) -> int:
    """The smallest power of two that is no less than `least`."""
    return 1 << max(0, least - 1).bit_length()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Codes or ue8m0 scales as uint8, contiguous; kernels take no float8 types."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8) if tensor.dtype != torch.uint8 else tensor

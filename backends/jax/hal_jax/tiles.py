"""A ragged batch as XLA likes it: tiles of equally many tokens, each of one request, their number a bucket's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jax import Array

from hal.batch import Batch
from hal_jax.exchange import array, bucket, platform

__all__ = ["Tiles", "tiles"]

_TOKENS = 16


class Tiles(NamedTuple):
    """Tokens [tiles, n] and their positions, -1 where a tile is not full; slots [tiles]; each token's place."""

    token: Array
    position: Array
    slot: Array
    place: Array


def tiles(batch: Batch) -> Tiles:
    """The batch's tiles: of one token where no request has more, else of 16."""
    return batch.derive(("jax", "tiles", platform()), lambda: _tiles(batch))


def _tiles(batch: Batch) -> Tiles:
    size = 1 if max(batch.lengths, default=0) <= 1 else _TOKENS
    counts = [-(-length // size) for length in batch.lengths]
    number, count = bucket(sum(counts)), batch.tokens
    first = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
    within = torch.arange(count) - batch.cu_seqlens.long()[batch.request]
    place = first[batch.request] * size + within
    token = torch.full((number * size,), -1, dtype=torch.int32)
    position = token.clone()
    token[place], position[place] = torch.arange(count, dtype=torch.int32), batch.positions.int()
    slot = torch.zeros(number, dtype=torch.int32)
    slot[: sum(counts)] = batch.slots.int().repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return Tiles(
        array(token.view(number, size)), array(position.view(number, size)), array(slot), array(place, bucket(count))
    )

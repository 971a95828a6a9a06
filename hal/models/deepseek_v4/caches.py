"""Everything a running request has on the device: paged windows, compressed entries and index rows, compressor tails.

Blocks of rows are handed out on demand from one pool per kind of cache; all layers of a kind share its block table. A
request owns a
slot from `open` to `close`. Rows are addressed by request and position, so requests may be interleaved in any order,
and a slot or block needs no clearing for its next owner: a row is only read where a position says that it was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from hal.cache import KVCache, StateCache
from hal.errors import ConfigError
from hal.layouts import layout
from hal.models.deepseek_v4.calls import Numerics
from hal.models.deepseek_v4.config import CSA_RATIO, DeepseekV4Config


@dataclass
class LayerCaches:
    """Caches of one block; those that its kind does not have are None."""

    window: KVCache
    compressed: KVCache | None = None
    state: StateCache | None = None
    index: KVCache | None = None
    index_state: StateCache | None = None


class BlockPool:
    """Physical blocks of one kind of cache: which are free, and which logical block of which slot has which.

    `ratio` is tokens per row: 1 for the window, else the compression ratio. `window` > 0 gives blocks back once no
    later token can see them.
    """

    def __init__(
        self, slots: int, tokens: int, blocks: int, block: int, ratio: int, window: int, device: torch.device
    ) -> None:
        self.block, self.ratio, self.window = block, ratio, window
        self.free = list(range(blocks - 1, -1, -1))
        self.table = torch.full((slots, max(1, ceil(tokens / (ratio * block)))), -1, dtype=torch.int32, device=device)
        self.blocks = blocks
        self._first = [0] * slots
        self._held: list[list[int]] = [[] for _ in range(slots)]

    def needed(self, slot: int, start: int, end: int) -> int:
        """Blocks missing before rows of positions below `end` can be written, those that `start` gives back counted."""
        keep = self._keep(start)
        last = ceil(end // self.ratio / self.block)
        held = self._first[slot] + len(self._held[slot])
        return max(0, last - max(held, keep)) - min(max(0, keep - self._first[slot]), len(self._held[slot]))

    def map(self, slot: int, start: int, end: int) -> None:
        """Give back blocks that no token from `start` on can see, then hold every block of positions below `end`."""
        held, keep = self._held[slot], self._keep(start)
        drop = min(max(0, keep - self._first[slot]), len(held))
        if drop:
            self.free += held[:drop]
            del held[:drop]
            self.table[slot, self._first[slot] : self._first[slot] + drop] = -1
        self._first[slot] = max(keep, self._first[slot]) if not held else self._first[slot] + drop
        begin = self._first[slot] + len(held)
        new = [self.free.pop() for _ in range(max(0, ceil(end // self.ratio / self.block) - begin))]
        if new:
            held += new
            self.table[slot, begin : begin + len(new)] = torch.tensor(new, dtype=torch.int32)

    def release(self, slot: int) -> None:
        """Give back all blocks of a slot."""
        self.free += self._held[slot]
        self._held[slot], self._first[slot] = [], 0
        self.table[slot] = -1

    def held(self, slot: int) -> tuple[int, list[int]]:
        """First logical block that a slot still has, and its physical blocks from there on."""
        return self._first[slot], list(self._held[slot])

    def adopt(self, slot: int, first: int, count: int) -> list[int]:
        """Give an empty slot `count` blocks from logical block `first` on."""
        new = [self.free.pop() for _ in range(count)]
        self._first[slot], self._held[slot] = first, new
        self.table[slot, first : first + count] = torch.tensor(new, dtype=torch.int32)
        return list(new)

    def _keep(self, start: int) -> int:
        return max(0, start - self.window + 1) // self.block if self.window else 0


@dataclass(frozen=True)
class SavedRequest:
    """A request's pages and states, copied off the caches; give it to `Caches.restore`."""

    blocks: dict[int, tuple[int, int]]
    pages: tuple[Tensor, ...]
    states: tuple[Tensor, ...]


class Caches:
    """Caches of all layers for up to `requests` requests at a time that hold `tokens` tokens together.

    Args:
        config: the model's configuration.
        numerics: which layouts rows are stored in.
        tokens: capacity, summed over requests.
        requests: number of slots.
        chunk: most new tokens in one step, summed over requests.
        block: rows of one page.
    """

    def __init__(
        self,
        config: DeepseekV4Config,
        numerics: Numerics,
        *,
        tokens: int,
        requests: int = 1,
        chunk: int | None = None,
        block: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        if tokens < 1 or requests < 1:
            raise ConfigError(
                f"caches for {tokens} tokens of {requests} requests", where="caches", fix="ask for at least one"
            )
        self.tokens, self.requests, self.chunk = tokens, requests, min(tokens, chunk or tokens)
        device = torch.device(device)
        self._ratios = [config.ratio(layer) for layer in config.layers]
        self._slots = list(range(requests - 1, -1, -1))
        self._pools: dict[int, BlockPool] = {}
        for ratio in sorted({1, *filter(None, self._ratios)}):
            window = config.sliding_window if ratio == 1 else 0
            if window:
                kept = min(tokens, requests * (window - 1) + self.chunk)
                blocks = ceil(kept / block) + 2 * requests
            else:
                blocks = ceil(tokens / (ratio * block)) + requests
            self._pools[ratio] = BlockPool(requests, tokens, blocks, block, ratio, window, device)
        dtype = torch.float64 if numerics.dtype == "float64" else torch.float32
        self.layers = [self._layer(config, numerics, layer, device, dtype) for layer in config.layers]

    def _layer(
        self, config: DeepseekV4Config, numerics: Numerics, layer: int, device: torch.device, dtype: torch.dtype
    ) -> LayerCaches:
        head_dim, rope_dim, ratio = config.head_dim, config.qk_rope_head_dim, config.ratio(layer)

        def rows(name: str, ratio: int, dim: int) -> KVCache:
            pool = self._pools[ratio]
            kind = layout(name, dim, pool.block, rope_dim)
            return KVCache(kind, kind.allocate(pool.blocks, device), pool.table)

        def state(dim: int) -> StateCache:
            return StateCache.allocate(self.requests, ratio, ratio == CSA_RATIO, dim, device, dtype=dtype)

        caches = LayerCaches(rows(numerics.window, 1, head_dim))
        if ratio:
            caches.compressed, caches.state = rows(numerics.compressed, ratio, head_dim), state(head_dim)
        if config.kind(layer) == "csa":
            dim = config.index_head_dim
            caches.index, caches.index_state = rows(numerics.index, ratio, dim), state(dim)
        return caches

    @property
    def free_slots(self) -> int:
        """Requests that can still be opened."""
        return len(self._slots)

    @property
    def free_blocks(self) -> dict[int, int]:
        """Free blocks by tokens per row: 1 for windows, else the compression ratio."""
        return {ratio: len(pool.free) for ratio, pool in self._pools.items()}

    @property
    def bytes(self) -> int:
        """Device bytes of all pages and states."""
        pages = sum(cache.bytes for cache, _ in self._paged())
        return pages + sum(state.tensor.nbytes for state in self._states())

    def open(self) -> int:
        """A slot for a new request.

        Raises:
            ConfigError: all slots are taken.
        """
        if not self._slots:
            raise ConfigError(
                f"all {self.requests} request slots are taken", where="caches", fix="close a request first"
            )
        return self._slots.pop()

    def close(self, slot: int) -> None:
        """End of a request: its slot and blocks are free again."""
        for pool in self._pools.values():
            pool.release(slot)
        self._slots.append(slot)

    def reserve(self, spans: list[tuple[int, int, int]]) -> None:
        """Make room for one step: `(slot, start, end)` per request, its new tokens' positions.

        Raises:
            ConfigError: the step does not fit; nothing is changed then.
        """
        furthest = max((end for _, _, end in spans), default=0)
        if furthest > self.tokens:
            raise ConfigError(
                f"a request asks for position {furthest} of caches for {self.tokens} tokens",
                where="caches",
                fix="make larger caches",
            )
        for pool in self._pools.values():
            missing = sum(pool.needed(*span) for span in spans)
            if missing > len(pool.free):
                raise ConfigError(
                    f"the step needs {missing} more cache blocks of {pool.block} rows, {len(pool.free)} are free",
                    where=f"caches for {self.tokens} tokens, {self.chunk} new ones a step, of {self.requests} requests",
                    fix="close or save a request, feed fewer tokens, or make larger caches",
                )
        for pool in self._pools.values():
            for span in spans:
                pool.map(*span)

    def save(self, slot: int) -> SavedRequest:
        """Copy out what a request has here; the slot may be closed afterwards."""
        held = {ratio: pool.held(slot) for ratio, pool in self._pools.items()}
        return SavedRequest(
            {ratio: (first, len(blocks)) for ratio, (first, blocks) in held.items()},
            tuple(cache.pages[held[ratio][1]] for cache, ratio in self._paged()),
            tuple(state.tensor[slot].clone() for state in self._states()),
        )

    def restore(self, saved: SavedRequest) -> int:
        """Put a saved request back, into any slot and any blocks; it continues bit for bit.

        Raises:
            ConfigError: no slot or not enough blocks are free.
        """
        if any(count > len(self._pools[ratio].free) for ratio, (_, count) in saved.blocks.items()):
            raise ConfigError("a saved request does not fit", where="caches", fix="close or save another request first")
        slot = self.open()
        blocks = {ratio: self._pools[ratio].adopt(slot, *held) for ratio, held in saved.blocks.items()}
        for (cache, ratio), pages in zip(self._paged(), saved.pages, strict=True):
            cache.pages[blocks[ratio]] = pages
        for state, kept in zip(self._states(), saved.states, strict=True):
            state.tensor[slot] = kept
        return slot

    def _paged(self) -> Iterator[tuple[KVCache, int]]:
        for layer, ratio in zip(self.layers, self._ratios, strict=True):
            yield layer.window, 1
            yield from ((cache, ratio) for cache in (layer.compressed, layer.index) if cache is not None)

    def _states(self) -> Iterator[StateCache]:
        for layer in self.layers:
            yield from (state for state in (layer.state, layer.index_state) if state is not None)

"""Quantised weights: codes and scales of one scheme, and the way there from floats, checkpoints and other schemes.

| scheme | codes | scales |
|---|---|---|
| `float64`, `float32`, `bf16` | the values | none |
| `fp8_block128` | float8_e4m3fn [n, k] | ue8m0 or float32 [n / 128, k / 128], rounded up |
| `mxfp4` | e2m1, two a byte: uint8 [n, k / 2] | ue8m0 [n, k / 32] |
| `mxfp8` | float8_e4m3fn [n, k] | ue8m0 [n, k / 32], rounded up |
| `w8a8_int8` | int8 [n, k] | float32 [n, 1]: one per output channel, symmetric |
| `w4a8_int` | int4, two a byte: uint8 [n, k / 2] | float32 [n, groups], groups of 128 unless scales are given |
| `w4a8_int_256` | int4, two outputs a byte: uint8 [k, n / 2] | float32 [n, k / 256] |
| `hif8` | HiFloat8: uint8 [n, k] | float32 [n, 1], powers of two that bring a channel below 15 |

Stacks of experts have one dimension more in front. ue8m0 scales of new weights are rounded up to a power of two, as the
published checkpoints' are; schemes that take float32 scales keep them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hal.errors import ContractError, UnknownName
from hal.formats.blocks import Blocks

__all__ = ["SCHEMES", "PackedWeight", "prepare"]

_PLAIN = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}
_BLOCKS = {
    "fp8_block128": Blocks("e4m3", 128, rows=128),
    "mxfp4": Blocks("e2m1", 32),
    "mxfp8": Blocks("e4m3", 32),
    "w8a8_int8": Blocks("int8", 0, power_of_two=False, scale_dtype=torch.float32),
    "w4a8_int": Blocks("int4", 128, power_of_two=False, scale_dtype=torch.float32),
    "w4a8_int_256": Blocks("int4", 256, power_of_two=False, scale_dtype=torch.float32, turned=True),
    "hif8": Blocks("hif8", 0, scale_dtype=torch.float32),
}

SCHEMES = (*_PLAIN, *_BLOCKS)
"""Names of all weight schemes."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight of one scheme, or a stack of experts' weights.

    Attributes:
        codes: as the scheme stores them, [(experts,) outputs, features], turned or not, or half as many bytes.
        scales: as the scheme stores them; None for schemes of plain values.
        scheme: name in `SCHEMES`.
        shape: of the values, [(experts,) outputs, features].
        lossy: the values are not the ones that `prepare` was given.
    """

    codes: Tensor
    scales: Tensor | None
    scheme: str
    shape: tuple[int, ...]
    lossy: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        _check(self)

    @property
    def bytes(self) -> int:
        """Device bytes of codes and scales."""
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values [(experts,) outputs, features]; products are taken in float32, or float64 where `dtype` is."""
        if self.scales is None:
            return self.codes.to(dtype)
        return _blocks(self.scheme, self.shape, self.scales).dequantize(self.codes, self.scales, dtype)

    def rows(self, low: int, high: int, expert: int | None = None) -> PackedWeight:
        """Outputs `low` to `high` (of one expert of a stack), sharing memory.

        Raises:
            ContractError: `low` is inside a block that shares its scales or its bytes, or an expert is needed and not
                given.
        """
        weight = self if expert is None else self[expert]
        if len(weight.shape) != 2:
            raise ContractError("rows of a whole stack", where="PackedWeight.rows", fix="name the expert")
        codes, scales, high = weight.codes, weight.scales, min(high, weight.shape[0])
        shape = (high - low, self.shape[-1])
        if scales is None:
            return replace(weight, codes=codes[low:high], shape=shape)
        blocks = _BLOCKS[self.scheme]
        packed = blocks.format.packed if blocks.turned else 1
        for row, height in ((low, blocks.rows), (low, packed), (high, packed)):
            if row % height:
                raise ContractError(
                    f"row {row} is inside a block of {height} rows that share scales or bytes",
                    where=f"PackedWeight.rows of {self.scheme}",
                    fix=f"take a multiple of {height}",
                )
        scales = scales[low // blocks.rows : -(-high // blocks.rows)]
        codes = codes[:, low // packed : high // packed] if blocks.turned else codes[low:high]
        return PackedWeight(codes, scales, self.scheme, shape, self.lossy)

    def __getitem__(self, expert: int) -> PackedWeight:
        """One expert of a stack, sharing memory."""
        scales = None if self.scales is None else self.scales[expert]
        return PackedWeight(self.codes[expert], scales, self.scheme, self.shape[1:], self.lossy)

    def take(self, experts: Tensor) -> PackedWeight:
        """Some experts of a stack, copied: int64 [n] numbers, which only their device knows -> a stack of n."""
        scales = None if self.scales is None else _taken(self.scales, experts)
        shape = (len(experts), *self.shape[1:])
        return PackedWeight(_taken(self.codes, experts), scales, self.scheme, shape, self.lossy)

    @classmethod
    def joined(cls, weights: Sequence[PackedWeight]) -> PackedWeight:
        """Outputs of weights [outputs, features] of one scheme behind each other.

        Raises:
            ContractError: schemes differ, or a weight but the last ends inside a block that shares its scales.
        """
        first, *others = weights
        blocks = _BLOCKS.get(first.scheme)
        height = blocks.rows if blocks else 1
        if any(each.scheme != first.scheme for each in others) or any(each.shape[0] % height for each in weights[:-1]):
            raise ContractError(
                f"{', '.join(f'{each.scheme} {list(each.shape)}' for each in weights)} cannot be joined",
                where="PackedWeight.joined",
                fix=f"take weights of one scheme with multiples of {height} outputs",
            )
        codes = torch.cat([each.codes for each in weights], -1 if blocks and blocks.turned else 0)
        scales = None if first.scales is None else torch.cat([_scales(each) for each in weights])
        shape = (sum(each.shape[0] for each in weights), first.shape[1])
        return cls(codes, scales, first.scheme, shape, any(each.lossy for each in weights))

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        scales = None if self.scales is None else self.scales.to(device)
        return replace(self, codes=self.codes.to(device), scales=scales)


def _taken(stack: Tensor, experts: Tensor) -> Tensor:
    """Bytes are taken as such: a device may index no float8."""
    if stack.itemsize > 1:
        return stack.index_select(0, experts)
    return stack.view(torch.uint8).index_select(0, experts).view(stack.dtype)


def prepare(
    weight: Tensor | PackedWeight,
    scheme: str,
    scales: Tensor | None = None,
    *,
    scale_dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Bring a weight into a scheme.

    Args:
        weight: float values [(experts,) outputs, features]; or codes with `scales`, as a checkpoint stores them, whose
            scheme follows from their dtypes and shapes; or a packed weight.
        scheme: the scheme wanted. Codes that are in it already are taken as they are.
        scales: of codes.
        scale_dtype: float32 keeps new scales of `fp8_block128` unrounded; float8_e8m0fnu is the default.

    Returns:
        The packed weight; `lossy` says whether any value differs from the ones given (or was lossy before). FP4 to FP8
        keeps every value if the scales of each 128 x 128 block lie within a factor of 2^14 (`convert.py`,
        `cast_e2m1fn_to_e4m3fn` of the official code).

    Raises:
        UnknownName: no such scheme.
        ContractError: codes and scales that fit no scheme; features that do not fill whole bytes.
    """
    if scheme not in SCHEMES:
        raise UnknownName(
            f"no weight scheme is called {scheme!r}", where="prepare", fix=f"use one of {', '.join(SCHEMES)}"
        )
    if scales is not None:
        if isinstance(weight, PackedWeight):
            raise ContractError("a packed weight has its scales", where="prepare", fix="pass the packed weight alone")
        weight = _recognised(weight, scales, scheme)
    if isinstance(weight, PackedWeight) and weight.scheme == scheme:
        return weight
    if scheme in _PLAIN:
        return _plain(weight, scheme)
    if len(weight.shape) == 3:
        return _stack([prepare(weight[expert], scheme, scale_dtype=scale_dtype) for expert in range(weight.shape[0])])
    return _quantized(weight, scheme, scale_dtype)


def _plain(weight: Tensor | PackedWeight, scheme: str) -> PackedWeight:
    dtype = _PLAIN[scheme]
    values = weight.dequantize(dtype) if isinstance(weight, PackedWeight) else weight.to(dtype)
    return PackedWeight(values, None, scheme, weight.shape, _lossy(weight, values))


def _quantized(weight: Tensor | PackedWeight, scheme: str, scale_dtype: torch.dtype | None) -> PackedWeight:
    blocks = _BLOCKS[scheme]
    if scheme == "fp8_block128" and scale_dtype == torch.float32:
        blocks = replace(blocks, power_of_two=False, scale_dtype=torch.float32)
    elif scale_dtype not in (None, blocks.scale_dtype):
        raise ContractError(
            f"{scheme} has no scales of {scale_dtype}",
            where="prepare",
            fix=f"leave scale_dtype out: {blocks.scale_dtype}",
        )
    length, what = (weight.shape[-2], "outputs") if blocks.turned else (weight.shape[-1], "features")
    if length % blocks.format.packed:
        raise ContractError(
            f"{length} {what} do not fill whole bytes of {scheme}", where="prepare", fix="pad the weight"
        )
    if isinstance(weight, PackedWeight) and (weight.scheme, blocks) == ("mxfp4", _BLOCKS["fp8_block128"]):
        codes, scales = _fp4_to_fp8(weight, blocks)
    else:
        values = weight.dequantize() if isinstance(weight, PackedWeight) else weight.detach().to(torch.float32)
        codes, scales = blocks.quantize(values)
    packed = PackedWeight(codes, scales, scheme, weight.shape)
    return replace(packed, lossy=_lossy(weight, packed.dequantize()))


def _fp4_to_fp8(weight: PackedWeight, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """e2m1 values times `2^k` as e4m3, `k` such that the largest scale of a block of 128 x 128 becomes 2^6."""
    assert weight.scales is not None
    exponents = weight.scales.view(torch.uint8).to(torch.int32)
    finite = exponents.where(exponents != 255, 0)  # NaN stays where it is, in the codes
    groups = Blocks(blocks.element, blocks.columns // _BLOCKS["mxfp4"].columns, rows=blocks.rows)
    split = groups.split(finite)
    shared = (split.amax(dim=(-3, -1), keepdim=True) - 6).clamp_(min=0)
    ratio = torch.exp2(groups.join(split - shared, finite).to(torch.float32)).where(exponents != 255, torch.nan)
    codes = _BLOCKS["mxfp4"].dequantize(weight.codes, ratio, torch.float32)
    return blocks.format.encode(codes), shared.squeeze((-3, -1)).to(torch.uint8).view(torch.float8_e8m0fnu)


def _lossy(weight: Tensor | PackedWeight, values: Tensor) -> bool:
    """Whether `values` differ from those of `weight`, or those were lossy already."""
    before = weight.dequantize(values.dtype) if isinstance(weight, PackedWeight) else weight.detach()
    differ = bool(((before != values) & ~(before.isnan() & values.isnan())).any())
    return differ or (isinstance(weight, PackedWeight) and weight.lossy)


def _stack(experts: list[PackedWeight]) -> PackedWeight:
    scales = torch.stack([_scales(expert) for expert in experts])
    codes = torch.stack([expert.codes for expert in experts])
    lossy = any(expert.lossy for expert in experts)
    return PackedWeight(codes, scales, experts[0].scheme, (len(experts), *experts[0].shape), lossy)


def _scales(weight: PackedWeight) -> Tensor:
    assert weight.scales is not None
    return weight.scales


def _blocks(scheme: str, shape: tuple[int, ...], scales: Tensor) -> Blocks:
    """The blocks of a packed weight: groups of int4 are as long as its scales say."""
    blocks = _BLOCKS[scheme]
    return replace(blocks, columns=shape[-1] // max(1, scales.shape[-1])) if scheme == "w4a8_int" else blocks


def _misfit(scheme: str, shape: tuple[int, ...], codes: Tensor, scales: Tensor | None) -> str:
    """What keeps codes and scales from being a weight of `scheme`; empty if nothing does."""
    if len(shape) not in (2, 3):
        return f"a weight has the shape [outputs, features] or [experts, outputs, features], not {list(shape)}"
    if scheme in _PLAIN:
        dtype, packed, turned = _PLAIN[scheme], 1, False
    else:
        dtype, packed, turned = _BLOCKS[scheme].format.dtype, _BLOCKS[scheme].format.packed, _BLOCKS[scheme].turned
    if codes.dtype != dtype:
        return f"codes of {scheme} are {dtype}, not {codes.dtype}"
    rows, columns = (shape[-1], shape[-2]) if turned else shape[-2:]
    wanted = (*shape[:-2], rows, columns // packed)
    if tuple(codes.shape) != wanted:
        return f"codes of a {list(shape)} weight are {list(wanted)}, not {list(codes.shape)}"
    if scheme in _PLAIN or scales is None:
        return "" if scheme in _PLAIN and scales is None else f"{scheme} and {'no ' * (scales is None)}scales"
    blocks = _blocks(scheme, shape, scales)
    dtypes = {blocks.scale_dtype, torch.float32} if scheme == "fp8_block128" else {blocks.scale_dtype}
    if scales.dtype not in dtypes:
        return f"scales of {scheme} are {' or '.join(sorted(map(str, dtypes)))}, not {scales.dtype}"
    columns = blocks.columns or shape[-1]
    wanted = (*shape[:-2], -(-shape[-2] // blocks.rows), -(-shape[-1] // max(1, columns)))
    if tuple(scales.shape) != wanted:
        return f"scales of a {list(shape)} weight are {list(wanted)}, not {list(scales.shape)}"
    return ""


def _check(weight: PackedWeight) -> None:
    if weight.scheme not in SCHEMES:
        raise UnknownName(
            f"no weight scheme is called {weight.scheme!r}",
            where="PackedWeight",
            fix=f"use one of {', '.join(SCHEMES)}",
        )
    misfit = _misfit(weight.scheme, weight.shape, weight.codes, weight.scales)
    if misfit:
        raise ContractError(misfit, where=f"PackedWeight of {weight.scheme}", fix="pass what the scheme stores")


def _recognised(codes: Tensor, scales: Tensor, scheme: str) -> PackedWeight:
    """Codes and scales of a checkpoint as a packed weight: of `scheme` if they fit it, else of the one they fit."""
    found = []
    for name, blocks in _BLOCKS.items():
        stored = codes.view(torch.uint8) if blocks.format.packed == 2 and codes.dtype == torch.int8 else codes
        rows, columns = codes.shape[-2], codes.shape[-1] * blocks.format.packed
        shape = (*codes.shape[:-2], *((columns, rows) if blocks.turned else (rows, columns)))
        if not _misfit(name, shape, stored, scales):
            found.append(PackedWeight(stored, scales, name, shape))
    found = [weight for weight in found if weight.scheme == scheme] or found
    if len(found) == 1:
        return found[0]
    what = f"{codes.dtype} codes {list(codes.shape)} with {scales.dtype} scales {list(scales.shape)}"
    raise ContractError(
        f"{what} fit {' and '.join(weight.scheme for weight in found) or 'no scheme'}",
        where="prepare",
        fix="build the PackedWeight with its scheme's name",
    )

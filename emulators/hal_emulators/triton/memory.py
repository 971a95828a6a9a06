"""A sanitizer for interpreted Triton kernels.

Interpreted kernels read and write host memory at real addresses, so an access outside a tensor is a crash at best and
silence at worst, and programs that run one after the other hide every race. `install` checks each access of each
program:

- bounds: the address lies in the tensor whose pointer the kernel started from. A pointer carries its argument's number
  in its unused top byte, so that running from one tensor into another is caught as well;
- races: no program reads what another one wrote in the same launch, writes what another one read or wrote, or touches
  plainly what another one updates atomically;
- duplicate addresses within one store, whose winner a chip does not define;
- reads of memory that nobody wrote (`fresh.py`).

Each finding is a `SanitizerError` that names the kernel, the argument, the program and the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

from hal_emulators.triton import fresh, traffic

Addresses = NDArray[Any]

TAG_SHIFT = 56
ADDRESS_MASK = (1 << TAG_SHIFT) - 1
NOBODY, MANY, ATOMIC = -1, -2, -3


class SanitizerError(Exception):
    """A kernel touched memory in a way that a chip does not define."""


@dataclass
class Shadow:
    """Who read and wrote each byte of one storage during the current launch; made when first needed."""

    start: int
    size: int
    writer: NDArray[np.int32] | None = None
    reader: NDArray[np.int32] | None = None

    def table(self, name: str) -> NDArray[np.int32]:
        table: NDArray[np.int32] | None = getattr(self, name)
        if table is None:
            table = np.full(self.size, NOBODY, np.int32)
            setattr(self, name, table)
        return table


@dataclass(frozen=True)
class Region:
    """One tensor argument of the launch: the addresses [start, end) it spans, and its storage's shadow."""

    name: str
    start: int
    end: int
    shadow: Shadow


@dataclass
class Launch:
    """The kernel that is running: its name, its tensor arguments by tag, and the current program."""

    kernel: str = ""
    program: int = 0
    names: dict[int, str] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)
    shadows: dict[int, Shadow] = field(default_factory=dict)

    def tag(self, tensor: torch.Tensor) -> int:
        """Register a tensor argument; the result is its address with its number in the top byte."""
        storage = tensor.untyped_storage()
        shadow = self.shadows.setdefault(storage.data_ptr(), Shadow(storage.data_ptr(), storage.nbytes()))
        extent = 0
        if tensor.numel():
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            extent = (reach + 1) * tensor.element_size()
        name = self.names.get(id(tensor), f"argument {len(self.regions)}")
        self.regions.append(Region(name, tensor.data_ptr(), tensor.data_ptr() + extent, shadow))
        return tensor.data_ptr() | (len(self.regions) << TAG_SHIFT)

    def fail(self, problem: str) -> SanitizerError:
        return SanitizerError(f"kernel {self.kernel}, program {self.program}: {problem}")


launch = Launch()


def check(pointers: TensorHandle, mask: Any, kind: str) -> TensorHandle:
    """Check one access of the running program; the pointers come back without their tags.

    Args:
        pointers: tagged addresses, any shape.
        mask: lanes that are active, broadcastable to the addresses.
        kind: "load", "store" or "atomic".
    """
    width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    tagged = np.asarray(pointers.data)
    plain = tagged & np.uint64(ADDRESS_MASK)
    active = tagged[np.broadcast_to(np.asarray(mask, bool), tagged.shape)]
    if active.size:
        tags = active >> np.uint64(TAG_SHIFT)
        for tag in tags[:1] if (tags == tags[0]).all() else np.unique(tags):
            addresses = (active[tags == tag] & np.uint64(ADDRESS_MASK)).astype(np.int64)
            if not 1 <= tag <= len(launch.regions):
                raise launch.fail(f"{kind} through a pointer that belongs to no argument")
            region = launch.regions[int(tag) - 1]
            _bounds(region, addresses, width, kind)
            _sharing(region, addresses, width, kind)
            traffic.record(region.shadow.start, region.shadow.size, addresses, width, kind)
    return TensorHandle(plain, pointers.dtype)


def _bounds(region: Region, addresses: Addresses, width: int, kind: str) -> None:
    outside = (addresses < region.start) | (addresses + width > region.end)
    if outside.any():
        byte = int(addresses[outside][0]) - region.start
        raise launch.fail(
            f"{kind} out of bounds: {int(outside.sum())} lanes, first at byte {byte} of '{region.name}', "
            f"which has {region.end - region.start} bytes"
        )


def _sharing(region: Region, addresses: Addresses, width: int, kind: str) -> None:
    shadow, program = region.shadow, launch.program
    first = addresses - shadow.start
    if kind == "store" and not (np.diff(first) > 0).all() and np.unique(first).size != first.size:
        raise launch.fail(f"duplicate addresses within one store to '{region.name}'")
    if shadow.writer is not None:
        _refuse(region, shadow.writer, first, kind, "written")
    if kind == "load":
        fresh.check_read(shadow.start, shadow.size, first, width, lambda text: launch.fail(f"{text} '{region.name}'"))
        reader = shadow.table("reader")
        known = reader[first]
        value = np.where((known == NOBODY) | (known == program), program, MANY)
        for byte in range(width):
            reader[first + byte] = value
        return
    if shadow.reader is not None:
        _refuse(region, shadow.reader, first, kind, "read")
    writer = shadow.table("writer")
    fresh.mark_written(shadow.start, shadow.size, first, width)
    for byte in range(width):
        writer[first + byte] = ATOMIC if kind == "atomic" else program


def _refuse(region: Region, owners: NDArray[np.int32], first: Addresses, kind: str, verb: str) -> None:
    owner = owners[first]
    foreign = (owner != NOBODY) & (owner != launch.program)
    if kind == "atomic":
        foreign &= owner != ATOMIC
    if foreign.any():
        other = int(owner[foreign][0])
        who = {MANY: "by several programs", ATOMIC: "atomically"}.get(other, f"by program {other}")
        byte = int(first[foreign][0]) + region.shadow.start - region.start
        raise launch.fail(f"{kind} races on byte {byte} of '{region.name}', {verb} {who}")


_load, _store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
_rmw, _cas = InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.create_atomic_cas
_grid_index, _call, _convert = InterpreterBuilder.set_grid_idx, GridExecutor.__call__, interpreter._implicit_cvt
_host_arguments = GridExecutor._init_args_hst


def _checked_load(self: Any, ptrs: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
    return _load(self, check(ptrs, mask.data, "load"), mask, *rest)


def _checked_store(self: Any, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, policy: Any) -> Any:
    return _store(self, check(ptrs, mask.data, "store"), value, mask, policy)


def _checked_rmw(self: Any, op: Any, ptr: TensorHandle, val: Any, mask: TensorHandle, *rest: Any) -> TensorHandle:
    return _rmw(self, op, check(ptr, mask.data, "atomic"), val, mask, *rest)


def _checked_cas(self: Any, ptr: TensorHandle, *rest: Any) -> TensorHandle:
    return _cas(self, check(ptr, True, "atomic"), *rest)


def _enter_program(self: Any, x: int, y: int, z: int) -> None:
    launch.program = (x * self.grid_dim[1] + y) * self.grid_dim[2] + z
    _grid_index(self, x, y, z)


def _named(self: GridExecutor, args: Any, kwargs: Any) -> Any:
    values, keywords = _host_arguments(self, args, kwargs)
    launch.names = {id(value): name for name, value in [*zip(self.arg_names, values, strict=False), *keywords.items()]}
    return values, keywords


def _tagged(argument: Any) -> Any:
    converted = _convert(argument)
    if isinstance(argument, torch.Tensor):
        converted.handle.data = np.array([launch.tag(argument)], np.uint64)
    return converted


def _run(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
    launch.kernel, launch.program = self.fn.__name__, 0
    launch.regions.clear()
    launch.shadows.clear()
    traffic.begin(launch.kernel)
    try:
        with np.errstate(all="ignore"):  # infinities and NaN are values here, as on a chip
            _call(self, *args, **kwargs)
    except interpreter.InterpreterError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SanitizerError):
            cause = cause.__cause__
        raise cause or error from None
    finally:
        launch.shadows.clear()


def install() -> None:
    """Check every access of every kernel interpreted from now on; harmless when repeated."""
    builder = InterpreterBuilder
    builder.create_masked_load, builder.create_masked_store = _checked_load, _checked_store
    builder.create_atomic_rmw, builder.create_atomic_cas = _checked_rmw, _checked_cas
    builder.set_grid_idx = _enter_program
    interpreter._implicit_cvt = _tagged
    GridExecutor._init_args_hst = _named
    GridExecutor.__call__ = _run

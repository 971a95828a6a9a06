"""PyTorch's own operators on npu tensors: CPU kernels on the same memory, where torch_npu has a kernel.

Where it has none, real hardware would move the tensors to the host and back. Here that warns in torch_npu's words and
is refused, unless the operator has parts that run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.host import waits
from hal_emulators.cann import host
from hal_emulators.cann.abi import aliased

__all__ = ["install"]

OWN = {
    "_copy_from",
    "_copy_from_and_resize",
    "_local_scalar_dense",
    "_pin_memory",
    "_to_copy",
    "clone",
    "contiguous",
    "copy_",
    "is_pinned",
    "is_set_to",
    "record_stream",
    "resize_",
    "set_",
}
"""Left to torch_npu: they allocate, copy or look at memory, which it does through the emulated runtime."""

_LIBRARIES: list[torch.library.Library] = []


def install() -> tuple[int, int]:
    """Give every operator its kernel; how many compute, and how many would fall back to the host."""
    library = torch.library.Library("aten", "IMPL")
    _LIBRARIES.append(library)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    computed = refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overriding is what is wanted
        for schema in torch._C._jit_get_all_schemas():
            name = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
            base = schema.name.removeprefix("aten::")
            if base == schema.name or base in OWN or base.startswith("empty") or _is_view(schema):
                continue
            if not torch._C._dispatch_has_kernel(name):
                continue
            operator = getattr(getattr(torch.ops.aten, base), schema.overload_name or "default")
            if has(name, "PrivateUse1"):
                if any(has(name, key) for key in ("CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")):
                    library.impl(name.removeprefix("aten::"), _on_host(operator), "PrivateUse1", allow_override=True)
                    computed += 1
            elif has(name, "CPU") and not _has_parts(name):
                library.impl(name.removeprefix("aten::"), _fallen_back(name), "PrivateUse1")
                refused += 1
    return computed, refused


def _is_view(schema: Any) -> bool:
    return any(out.alias_info is not None and not out.alias_info.is_write for out in schema.returns)


def _has_parts(name: str) -> bool:
    kinds = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, kind) for kind in kinds)


def _fallen_back(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **words: Any) -> Any:
        text = (
            f"CAUTION: The operator '{name}' is not currently supported on the NPU backend and will fall back to run on"
        )
        warnings.warn(f"{text} the CPU. This may have performance implications.", UserWarning, stacklevel=2)
        raise NotImplementedError(f"torch_npu has no kernel for {name}: it would run on the host")

    return refuse


def _on_host(operator: Any) -> Callable[..., Any]:
    """`operator` on CPU tensors that share the memory of its npu tensors; new results are copied to the device."""
    queued = os.environ.get("TASK_QUEUE_ENABLE", "1") != "0"

    def call(*arguments: Any, **words: Any) -> Any:
        if queued:
            torch.npu.synchronize()  # what is queued writes the same memory
        if waits(operator, arguments, words):
            host.told(str(operator))
        shared: list[tuple[Tensor, Tensor]] = []
        device: list[torch.device] = []

        def down(x: Any) -> Any:
            if isinstance(x, Tensor) and x.device.type == "npu":
                device.append(x.device)
                shared.append((aliased(x), x))
                return shared[-1][0]
            if isinstance(x, torch.device) and x.type == "npu":
                device.append(x)
                return torch.device("cpu")
            if isinstance(x, torch.Generator):
                return None
            return type(x)(down(each) for each in x) if isinstance(x, (list, tuple)) else x

        def up(x: Any) -> Any:
            if isinstance(x, Tensor):
                return _returned(x, shared, device[0] if device else torch.device("npu", torch.npu.current_device()))
            return type(x)(up(each) for each in x) if isinstance(x, (list, tuple)) else x

        words = {name: down(value) for name, value in words.items()}
        if words.get("pin_memory"):
            words["pin_memory"] = False
        return up(operator(*down(arguments), **words))

    return call


def _returned(x: Tensor, shared: list[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    for seen, original in shared:
        if x is seen:
            if x.shape != original.shape or (x.numel() and x.data_ptr() != original.data_ptr()):  # `out` was resized
                original.resize_(x.shape)
                aliased(original).copy_(x)
            return original
    if not x.numel():
        return torch.empty(x.shape, dtype=x.dtype, device=device)
    out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    aliased(out).copy_(x)
    return out

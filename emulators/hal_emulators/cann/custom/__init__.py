"""vllm-ascend's own operators of DeepSeek-V4, `torch.ops._C_ascend`: its schemas, verbatim (commit 182b75e).

Those that the backend calls have kernels, written from the README of each operator.

Calling another one reaches the schema's checks and then fails for want of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hal_emulators.cann.abi import aliased

__all__ = ["install", "kernel"]

KERNELS: dict[str, Callable[..., Any]] = {}
ND, NZ = 2, 29
FRACTAL = {"dispatch_ffn_combine": ("weight1", "weight2"), "grouped_matmul_swiglu_quant_v2": ("weight",)}
"""Arguments that an operator reads as FRACTAL_NZ, whatever they are."""
_LIBRARIES: list[torch.library.Library] = []


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a kernel under its own name: it gets CPU tensors on the npu tensors' memory, and may write them."""
    KERNELS[function.__name__] = function
    return function


def install() -> None:
    """Define every schema, and give the operators that have one their kernel."""
    from hal_emulators.cann.custom import attention, compression, experts, hyper  # noqa: F401

    library = torch.library.Library("_C_ascend", "DEF")
    _LIBRARIES.append(library)
    for schema in (Path(__file__).parent / "schemas.txt").read_text().splitlines():
        library.define(schema)
    for name, function in KERNELS.items():
        library.impl(name, _on_host(name, function), "PrivateUse1")
        if name.endswith("_metadata"):  # may have no tensor to tell the device by
            library.impl(name, _on_host(name, function), "BackendSelect")


def _on_host(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with every argument by its name in the schema."""
    schema = getattr(torch.ops._C_ascend, name).default._schema.arguments
    names = [each.name for each in schema]
    defaults = {each.name: each.default_value for each in schema if each.has_default_value()}

    def call(*arguments: Any, **words: Any) -> Any:
        import torch_npu

        torch.npu.synchronize()
        given = defaults | dict(zip(names, arguments, strict=False)) | words  # torch leaves out what is the default
        for word in FRACTAL.get(name, ()):
            if any(torch_npu.get_npu_format(each) != NZ for each in given[word]):
                raise RuntimeError(f"{name} reads {word} as FRACTAL_NZ, which it is not")
        made = function(**{word: _down(value) for word, value in given.items()})
        return tuple(map(_up, made)) if isinstance(made, tuple) else _up(made)

    return call


def _down(x: Any) -> Any:
    """The same memory seen from the host; a copy in rows of what is stored in fractions."""
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [_down(each) for each in x]
    if not isinstance(x, Tensor):
        return x
    import torch_npu

    if torch_npu.get_npu_format(x) == NZ:
        return aliased(torch_npu.npu_format_cast(x, ND)).clone()
    return aliased(x)


def _up(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to("npu")

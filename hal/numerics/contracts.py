"""From a contract's name to what a call of it must return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

from hal.errors import ContractError
from hal.numerics import attention, matmul, mhc, moe
from hal.numerics.arguments import host
from hal.numerics.expectation import Expectation, Part
from hal.numerics.precision import Precision
from hal.ops import get

__all__ = ["expect"]

_RULES: dict[str, Callable[..., list[Part]]] = {
    "attn.attend": attention.attend,
    "attn.compress": attention.compress,
    "attn.compress_pool": attention.compress_pool,
    "attn.index_scores": attention.index_scores,
    "attn.select": attention.select,
    "attn.store": attention.store,
    "mhc.post": mhc.post,
    "mhc.pre": mhc.pre,
    "moe.combine": moe.combine,
    "moe.dispatch": moe.dispatch,
    "moe.experts": moe.experts,
    "moe.ffn": moe.ffn,
    "moe.route": moe.route,
    "quant.matmul": matmul.matmul,
    "quant.quantize": matmul.quantize,
}


def expect(
    contract: str,
    arguments: Sequence[Any],
    attributes: Mapping[str, Any],
    precision: Precision | None = None,
    layouts: Mapping[str, str] = MappingProxyType({}),
) -> Expectation:
    """What the call `contract(*arguments, **attributes)` must return and leave behind.

    Call it before the kernel: arguments are copied to the host, where the reference runs in float64.

    Args:
        arguments: in the order of the contract's signature, optional ones None.
        precision: what the kernel declares where the contract leaves a choice; None: what the contract promises.
        layouts: of the planned call; an output that it declines (`lse`: `none`) may be anything.

    Raises:
        ContractError: no rule is known for `contract`.
    """
    if contract not in _RULES:
        raise ContractError(
            f"there is no rule to judge {contract} by",
            where="hal.numerics.contracts",
            fix="add one to the table of that module, beside the contract's reference",
        )
    module, name = get(contract).reference.split(":")
    reference = getattr(import_module(module), name)
    copies = tuple(host(argument) for argument in arguments)
    parts = _RULES[contract](reference, copies, dict(attributes), precision)
    return Expectation(contract, tuple(part for part in parts if layouts.get(part.name) != "none"))

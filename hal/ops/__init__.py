"""Every contract, by name. Importing this needs no torch."""

from __future__ import annotations

from difflib import get_close_matches

from hal.contract import Contract
from hal.errors import UnknownName
from hal.ops import attention, experts, matmul, mhc

__all__ = ["CONTRACTS", "get"]

CONTRACTS: dict[str, Contract] = {
    contract.name: contract for family in (attention, experts, matmul, mhc) for contract in family.CONTRACTS
}


def get(name: str) -> Contract:
    """The contract called `name`.

    Raises:
        UnknownName: there is none; the error names the nearest one.
    """
    if name in CONTRACTS:
        return CONTRACTS[name]
    near = get_close_matches(name, CONTRACTS, n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(CONTRACTS)}"
    raise UnknownName(f"no contract is called {name!r}", where="hal.ops", fix=fix)

"""What HAL_ALLOW has to permit before a kernel may serve."""

from __future__ import annotations

from collections.abc import Iterable

from hal import ops
from hal.errors import Forbidden
from hal.kernel import Kernel
from hal.policy import Policy
from hal.target import Target


def barred(kernels: Iterable[Kernel], target: Target, policy: Policy) -> dict[str, tuple[str, str]]:
    """Kernels that may not serve: id -> why, and the word of HAL_ALLOW that permits them."""
    found: dict[str, tuple[str, str]] = {}
    for kernel in kernels:
        if kernel.id.startswith("reference."):
            free = target.backend == "reference" or ops.get(kernel.contract).portable
            if not free and "reference" not in policy.allow:
                found[kernel.id] = ("the reference is not for use (HAL_ALLOW=reference)", "reference")
        elif not kernel.deterministic and "nondeterministic" not in policy.allow:
            found[kernel.id] = ("it is not deterministic (HAL_ALLOW=nondeterministic)", "nondeterministic")
        elif "unverified" not in policy.allow:
            reached = _tier(kernel, target)
            if reached != "verified":
                found[kernel.id] = (f"its tier is {reached} (HAL_ALLOW=unverified)", "unverified")
    return found


def require(word: str, what: str, *, where: str, policy: Policy | None = None) -> None:
    """Permission for something that is not a kernel, as a lossy conversion.

    Raises:
        Forbidden: HAL_ALLOW does not have the word.
    """
    policy = policy or Policy.current()
    if word not in policy.allow:
        words = ",".join(sorted({*policy.allow, word}))
        raise Forbidden(what, where=where, fix=f"set HAL_ALLOW={words} to permit it")


def _tier(kernel: Kernel, target: Target) -> str:
    from hal.evidence import of_backend, tier

    return tier(kernel, target, of_backend(target.backend))

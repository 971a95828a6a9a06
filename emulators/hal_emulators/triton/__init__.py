"""NVIDIA chips for Triton kernels, on the host: `activate` turns Triton into a trustworthy interpreter.

- `arithmetic`: bfloat16, float8 and tf32 as the chips compute them;
- `memory`, `fresh`: bounds, races, duplicate stores, uninitialised reads;
- `traffic`: bytes moved per kernel.

Tensors stay on the CPU. Needs triton 3.9.0, whose interpreter is the one repaired here.
"""

from __future__ import annotations

from hal.target import Target, described

SUPPORTED = "3.9.0"
ARCHITECTURES = {"sm80": 80, "sm86": 86, "sm89": 89, "sm90": 90, "sm100": 100, "sm103": 103, "sm120": 120}
DEFAULT = "sm90"


def start(chip: str = "") -> Target:
    """The chip's target, with its kernels interpreted from now on; its tensors are the CPU's.

    Raises:
        ValueError, RuntimeError: as `activate`.
    """
    chip = chip or DEFAULT
    activate(chip)
    profile = next((target for target in described() if target.name == f"cuda:{chip}"), None)
    features, facts = (profile.features, profile.facts) if profile else (frozenset(), {})
    return Target(f"cuda:{chip}", "cpu", features, facts, present=False, emulated=True)


def activate(chip: str | None = None) -> None:
    """Interpret every Triton kernel of this process from now on, checked, as if it ran on `chip`.

    Args:
        chip: "sm80", "sm89", "sm90", "sm100" or "sm120"; it selects tile configurations, not arithmetic.

    Raises:
        ValueError: for a chip that is not listed.
        RuntimeError: for another Triton than 3.9.0: the repair replaces its private functions.
    """
    chip = chip or DEFAULT
    if chip not in ARCHITECTURES:
        raise ValueError(f"the Triton emulator knows {', '.join(ARCHITECTURES)}, not {chip!r}")
    import triton

    if triton.__version__ != SUPPORTED:
        raise RuntimeError(
            f"the Triton emulator repairs triton {SUPPORTED}, but {triton.__version__} is installed: "
            f"pip install --no-deps triton=={SUPPORTED}"
        )
    from triton.backends.compiler import GPUTarget

    from hal_emulators.triton import arithmetic, fresh, memory, switch

    switch.interpret(GPUTarget("cuda", ARCHITECTURES[chip], 32))
    arithmetic.repair()
    memory.install()
    fresh.install()


def deactivate() -> None:
    """Compile Triton kernels again and give torch its own allocation functions back."""
    from hal_emulators.triton import fresh, switch

    switch.compile_again()
    fresh.remove()

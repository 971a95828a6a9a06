"""What can go wrong, as a tree. Each error is one paragraph: what happened, where it came from, the one thing to do.

HalError
├── ConfigError            what the user wrote
│   ├── UnknownVariable    a HAL_* variable that does not exist
│   ├── UnknownName        a backend, operator, kernel, chip or word that does not exist
│   └── BadRule            a rule that cannot be read
├── BackendError           an installed package
│   ├── NotInstalled       it is not there
│   ├── NoDevice           its chip is not there
│   ├── Ambiguous          several could be meant
│   ├── Conflict           two claim the same name
│   ├── ApiMismatch        it was built for another version of hal
│   └── Broken             it raised while it was loaded
├── PlanError              a model and a chip
│   ├── NoKernel           no kernel can serve a call
│   ├── Uncovered          kernels leave a hole in a range of sizes
│   ├── Forbidden          it would need a word in HAL_ALLOW
│   └── Drift              a lock file says something else
├── ContractError          arguments that no kernel could serve
├── KernelError            a kernel raised
│   └── HostFallback       a kernel left its device
├── ParityError            two implementations disagree
├── CheckpointError        a model's file
└── CaptureError           a recording of calls
"""

from __future__ import annotations


class HalError(Exception):
    """Base of all errors of hal: `what` happened, `where` it came from, the one thing that `fix`es it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        words = f"{self.where}: {self.what}" if self.where else self.what
        if not self.fix:
            return words
        fix = self.fix[:1].upper() + self.fix[1:]
        return f"{words.rstrip('.')}. {fix}" + ("" if fix.endswith((".", "?")) else ".")


class ConfigError(HalError):
    """What the user wrote cannot be followed."""


class UnknownVariable(ConfigError):
    """A HAL_* variable that does not exist."""


class UnknownName(ConfigError):
    """A name that does not exist."""


class BadRule(ConfigError):
    """A rule that cannot be read."""


class BackendError(HalError):
    """An installed backend cannot be used."""


class NotInstalled(BackendError):
    """The backend is not installed."""


class NoDevice(BackendError):
    """The backend's chip is not here."""


class Ambiguous(BackendError):
    """Several backends could be meant."""


class Conflict(BackendError):
    """Two packages claim the same name."""


class ApiMismatch(BackendError):
    """The backend was built for another version of hal."""


class Broken(BackendError):
    """The backend raised while it was loaded."""


class PlanError(HalError):
    """A chip cannot run a model; `blockers` has every reason."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", blockers: tuple[str, ...] = ()) -> None:
        super().__init__(what, where=where, fix=fix)
        self.blockers = blockers


class NoKernel(PlanError):
    """No kernel can serve a call."""


class Uncovered(PlanError):
    """Kernels leave a hole in a declared range of sizes."""


class Forbidden(PlanError):
    """The only way needs a word in HAL_ALLOW."""


class Drift(PlanError):
    """A lock file says something else."""


class ContractError(HalError):
    """Arguments that break the contract."""


class KernelError(HalError):
    """A kernel raised."""


class HostFallback(KernelError):
    """A kernel left its device."""


class ParityError(HalError):
    """Two implementations disagree."""


class CheckpointError(HalError):
    """A checkpoint cannot be read."""


class CaptureError(HalError):
    """A recording of calls cannot be written or read."""

"""Laws: what must hold between several calls of one kernel, whatever its numbers are. Contracts name theirs."""

from hal.conformance.laws.capture import CAPTURED
from hal.conformance.laws.law import Law, laws_of

__all__ = ["CAPTURED", "Law", "laws_of"]

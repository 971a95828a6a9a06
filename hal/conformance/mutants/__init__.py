"""Backends with one planted bug each, cited from where it happened in the wild: the suite must catch them all.

Each is the reference with one thing wrong. Beside them stand honest backends, which the suite must not reject.
"""

from hal.conformance.mutants.catalogue import HONEST, MUTANTS
from hal.conformance.mutants.planted import Mutant, install

__all__ = ["HONEST", "MUTANTS", "Mutant", "install"]

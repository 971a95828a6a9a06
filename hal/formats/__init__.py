"""Number formats as types: element codecs, activation quantisers and weight schemes, exact to the bit."""

from hal.formats.activations import ACTIVATIONS, Quantized, quantize, simulate
from hal.formats.hadamard import hadamard_transform
from hal.formats.weights import SCHEMES, PackedWeight, prepare

__all__ = [
    "ACTIVATIONS",
    "SCHEMES",
    "PackedWeight",
    "Quantized",
    "hadamard_transform",
    "prepare",
    "quantize",
    "simulate",
]

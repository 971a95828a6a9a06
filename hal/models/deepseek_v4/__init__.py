"""DeepSeek-V4: configuration, checkpoints, model, generation.

`from hal.models.deepseek_v4 import DeepseekV4` and `from hal.models.deepseek_v4.generate import generate` are the way
in.
`config`, `config_reader`, `tensors`, `names` and `calls` need no torch; the other modules are imported when a name of
theirs is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.models.deepseek_v4.caches import Caches as Caches
    from hal.models.deepseek_v4.calls import Numerics as Numerics
    from hal.models.deepseek_v4.calls import uses as uses
    from hal.models.deepseek_v4.checkpoint import Checkpoint as Checkpoint
    from hal.models.deepseek_v4.checkpoint import inspect as inspect
    from hal.models.deepseek_v4.config import DeepseekV4Config as DeepseekV4Config
    from hal.models.deepseek_v4.config import Quantization as Quantization
    from hal.models.deepseek_v4.config_reader import load as load
    from hal.models.deepseek_v4.config_reader import packaged as packaged
    from hal.models.deepseek_v4.generate import Session as Session
    from hal.models.deepseek_v4.model import DeepseekV4 as DeepseekV4
    from hal.models.deepseek_v4.sampling import Sampler as Sampler
    from hal.models.deepseek_v4.tensors import TensorSpec as TensorSpec
    from hal.models.deepseek_v4.tokenizer import Tokenizer as Tokenizer
    from hal.models.deepseek_v4.writer import save_checkpoint as save_checkpoint

_HOMES = {
    "caches": ("Caches",),
    "calls": ("Numerics", "uses"),
    "checkpoint": ("Checkpoint", "inspect"),
    "config": ("DeepseekV4Config", "Quantization"),
    "config_reader": ("load", "packaged"),
    "generate": ("Session",),
    "model": ("DeepseekV4",),
    "sampling": ("Sampler",),
    "tensors": ("TensorSpec",),
    "tokenizer": ("Tokenizer",),
    "writer": ("save_checkpoint",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

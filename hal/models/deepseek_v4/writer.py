"""Writes a checkpoint in the published form: official names, FP8 128x128 and FP4 weights with ue8m0 scales, shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from hal.formats import PackedWeight, prepare
from hal.models.deepseek_v4.config import DeepseekV4Config, Quantization
from hal.models.deepseek_v4.model import DeepseekV4
from hal.models.deepseek_v4.tensors import TensorSpec, tensors

PUBLISHED = Quantization("fp4")
"""FP8 weights and FP4 experts, as DeepSeek-V4-Flash and -Pro are published."""

_SCHEMES = {"fp8": "fp8_block128", "fp4": "mxfp4"}
_DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32, "int32": torch.int32}


def save_checkpoint(
    path: str | Path,
    model: DeepseekV4,
    *,
    quantization: Quantization | None = PUBLISHED,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 5 << 30,
) -> DeepseekV4Config:
    """Write `model` and its `config.json` into the folder `path`; returns the configuration written.

    Weights that are already packed as `quantization` asks keep their codes bit for bit; others are quantised.

    Args:
        quantization: FP8 linear weights and FP4 (or FP8) routed experts; None writes every weight in `dtype`.
        dtype: storage of unquantised matrices and norms (the published checkpoints: bfloat16).
        shard_bytes: a new file is begun before one grows beyond this.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(model.config, quantization=quantization)
    shards: list[dict[str, Tensor]] = [{}]
    sizes = [0]
    for name, tensor in _stored(model, config, dtype):
        if sizes[-1] and sizes[-1] + tensor.nbytes > shard_bytes:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensor.detach().cpu().contiguous()
        sizes[-1] += tensor.nbytes
    files = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    return config


def _stored(model: DeepseekV4, config: DeepseekV4Config, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    weights = dict(official_weights(model))
    for spec in tensors(config):
        weight, storage = weights.pop(spec.name), spec.storage(config)
        if storage not in _SCHEMES:
            plain = weight.dequantize(torch.float32) if isinstance(weight, PackedWeight) else weight
            yield spec.name, plain.to(dtype if storage == "bf16" else _DTYPES[storage])
            continue
        packed = _packed(weight, _SCHEMES[storage])
        assert packed.scales is not None
        yield spec.name, packed.codes.view(torch.int8) if storage == "fp4" else packed.codes
        yield spec.scale_name, packed.scales


def _packed(weight: Tensor | PackedWeight, scheme: str) -> PackedWeight:
    if isinstance(weight, PackedWeight):
        if weight.scheme == scheme:
            return weight
        weight = weight.dequantize(torch.float32)
    return prepare(weight.detach().float(), scheme)


def official_weights(model: DeepseekV4) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    """Every weight of a model under its official name, routed experts one matrix at a time."""
    specs: dict[str, TensorSpec] = {spec.name: spec for spec in tensors(model.config)}
    for module_name, module in model.named_modules():
        own: dict[str, object] = dict(module.named_parameters(recurse=False))
        own.update(module.named_buffers(recurse=False))
        own.update((name, value) for name, value in vars(module).items() if isinstance(value, PackedWeight))
        for leaf, weight in own.items():
            assert isinstance(weight, (Tensor, PackedWeight))
            name = re.sub(r"\bhc_(attn|ffn|head)\.", r"hc_\1_", f"{module_name}.{leaf}".lstrip("."))
            if leaf in ("w13", "w2") and module_name.endswith(".experts"):
                yield from _unstacked(module_name, leaf, weight)
            else:
                yield name if name in specs else f"{name}.weight", weight


def _unstacked(prefix: str, leaf: str, stack: Tensor | PackedWeight) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    halves = ("w1", "w3") if leaf == "w13" else ("w2",)
    height = stack.shape[1] // len(halves)
    for expert in range(stack.shape[0]):
        for index, half in enumerate(halves):
            rows = slice(index * height, (index + 1) * height)
            matrix = stack[expert, rows] if isinstance(stack, Tensor) else stack.rows(rows.start, rows.stop, expert)
            yield f"{prefix}.{expert}.{half}.weight", matrix

"""Checkpoints: official and Hugging Face names, one file and shards, every storage, and the texts of broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hal.errors import CheckpointError, ConfigError
from hal.models.deepseek_v4 import Checkpoint, DeepseekV4, Quantization, inspect, save_checkpoint
from hal.models.deepseek_v4.tensors import tensors
from hal.models.deepseek_v4.writer import official_weights

from . import conftest as lab

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3]
CONFIG = lab.tiny(hidden_size=64, head_dim=72, index_head_dim=32, moe_intermediate_size=128)


@pytest.fixture(scope="module")
def model() -> DeepseekV4:
    return DeepseekV4.from_tensors(CONFIG, lab.random_tensors(CONFIG, 2), backend="reference")


@pytest.fixture(scope="module")
def plain(model: DeepseekV4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantised checkpoint in float32, three shards or more."""
    folder = tmp_path_factory.mktemp("plain")
    save_checkpoint(folder, model, quantization=None, dtype=torch.float32, shard_bytes=200_000)
    return folder


@pytest.fixture(scope="module")
def quantized(model: DeepseekV4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published form: FP8 weights, FP4 experts."""
    folder = tmp_path_factory.mktemp("quantized")
    save_checkpoint(folder, model)
    return folder


def logits(model: DeepseekV4) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([*model.logits([PROMPT]), *model.logits_with_drafts([PROMPT])[1]])


def test_plain_round_trip(model: DeepseekV4, plain: Path) -> None:
    assert len(list(plain.glob("*.safetensors"))) >= 3
    assert torch.equal(logits(DeepseekV4.from_checkpoint(plain, backend="reference")), logits(model))


def test_one_file_without_index(plain: Path, model: DeepseekV4, tmp_path: Path) -> None:
    merged = {name: tensor for file in plain.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file(merged, tmp_path / "model.safetensors")
    shutil.copy(plain / "config.json", tmp_path)
    assert torch.equal(logits(DeepseekV4.from_checkpoint(tmp_path, backend="reference")), logits(model))
    file = DeepseekV4.from_checkpoint(tmp_path / "model.safetensors", backend="reference")
    assert torch.equal(logits(file), logits(model))


@pytest.mark.parametrize("how", ["saved", "in memory"])
def test_transformers_names(how: str, tmp_path: Path, model: DeepseekV4) -> None:
    """What transformers saves, and the names it has in memory (stacked experts): same logits, no MTP block."""
    oracle = lab.transformers_model(CONFIG, lab.random_tensors(CONFIG, 2))
    oracle.save_pretrained(tmp_path)
    if how == "in memory":
        save_file(
            {name: value.contiguous() for name, value in oracle.state_dict().items()}, tmp_path / "model.safetensors"
        )
        assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    loaded = DeepseekV4.from_checkpoint(tmp_path, backend="reference")
    assert not loaded.mtp
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits([PROMPT])[0], model.logits([PROMPT])[0], rtol=0, atol=2e-5)


def test_quantized_storage(quantized: Path) -> None:
    """Every tensor is stored as the published checkpoints store it."""
    checkpoint = Checkpoint.open(quantized)
    checkpoint.check()
    stored = {"fp8": "F8_E4M3", "fp4": "I8", "bf16": "BF16", "float32": "F32", "int32": "I32"}
    for spec in tensors(checkpoint.config):
        storage = spec.storage(checkpoint.config)
        assert checkpoint.entries[spec.name].dtype == stored[storage], spec.name
        if storage in ("fp8", "fp4"):
            assert checkpoint.entries[spec.scale_name].dtype == "F8_E8M0"
    assert inspect(quantized)["bytes"] == sum(spec.bytes(checkpoint.config) for spec in tensors(checkpoint.config))


def test_quantized_bytes_survive(quantized: Path, tmp_path: Path) -> None:
    """Loading with quantised weights and writing again gives the same bytes."""
    loaded = DeepseekV4.from_checkpoint(quantized, backend="reference")
    assert loaded.simulate
    save_checkpoint(tmp_path, loaded)
    first, second = (load_file(next(folder.glob("*.safetensors"))) for folder in (quantized, tmp_path))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


def test_simulation_off_is_the_dequantised_model(quantized: Path) -> None:
    """`simulate=False` computes with the dequantised weights; `simulate=True` rounds on top, a little."""
    exact = DeepseekV4.from_checkpoint(quantized, backend="reference", simulate=False)
    rounded = DeepseekV4.from_checkpoint(quantized, backend="reference")
    assert not exact.simulate
    weights = {}
    for name, weight in official_weights(rounded):
        weights[name] = weight if isinstance(weight, torch.Tensor) else weight.dequantize(torch.float32)
    by_hand = DeepseekV4.from_tensors(replace(CONFIG, quantization=None), weights, backend="reference")
    right = logits(by_hand)
    assert torch.equal(logits(exact), right)
    difference = (logits(rounded) - right).std() / right.std()
    assert 1e-3 < difference < 0.6, difference


def test_fp8_experts_with_float32_scales(model: DeepseekV4, tmp_path: Path) -> None:
    """Flash-Base: FP8 experts, all scales float32."""
    save_checkpoint(tmp_path, model, quantization=Quantization("fp8"))
    before = logits(DeepseekV4.from_checkpoint(tmp_path, backend="reference"))
    (file,) = tmp_path.glob("*.safetensors")
    stored = load_file(file)
    save_file({name: t.float() if name.endswith(".scale") else t for name, t in stored.items()}, file)
    assert Checkpoint.open(tmp_path).entries["layers.0.attn.wkv.scale"].dtype == "F32"
    assert torch.equal(logits(DeepseekV4.from_checkpoint(tmp_path, backend="reference")), before)


def test_opening_reads_no_tensor(quantized: Path, tmp_path: Path) -> None:
    """A file of 8 TiB, sparse: its header is checked, nothing is read."""
    header = {"embed.weight": {"dtype": "F32", "shape": [1 << 21, 1 << 20], "data_offsets": [0, 1 << 43]}}
    text = json.dumps(header).encode()
    shutil.copy(quantized / "config.json", tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 43))
    summary = inspect(tmp_path)
    assert summary["bytes"] == 1 << 43
    assert "missing" in summary["problem"]


def edited(folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a one-file checkpoint with its tensors changed."""
    (file,) = folder.glob("*.safetensors")
    stored = load_file(file)
    change(stored)
    save_file(stored, tmp_path / file.name)
    shutil.copy(folder / "config.json", tmp_path)
    return tmp_path


def nan_scale(stored: dict[str, torch.Tensor]) -> None:
    stored["layers.1.ffn.experts.2.w3.scale"].view(torch.uint8)[0, 0] = 0xFF


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda s: s.pop("layers.2.attn.wkv.weight"), "1 missing (`layers.2.attn.wkv.weight`)"),
    "extra": (lambda s: s.update({"layers.9.ape": torch.ones(1)}), "1 extra (`layers.9.ape`)"),
    "shape": (
        lambda s: s.update({"norm.weight": torch.ones(63, dtype=torch.bfloat16)}),
        "`norm.weight` has shape [63], the configuration asks for [64]",
    ),
    "no scale": (lambda s: s.pop("layers.0.attn.wq_a.scale"), "its scale `layers.0.attn.wq_a.scale` is missing"),
    "scale shape": (
        lambda s: s.update({"layers.0.attn.wq_a.scale": torch.ones(2, 2)}),
        "`layers.0.attn.wq_a.scale` is [2, 2] of F32, not [1, 1]",
    ),
    "storage": (
        lambda s: s.update({"layers.0.ffn.experts.0.w1.weight": torch.ones(128, 64).to(torch.float8_e4m3fn)}),
        "is stored as F8_E4M3, the configuration says fp4",
    ),
    "twice": (
        lambda s: s.update({"model.norm.weight": s["norm.weight"].clone()}),
        "`norm.weight` is there twice",
    ),
    "nan scale": (nan_scale, "`layers.1.ffn.experts.2.w3.scale` contains NaN scales"),
    "float ids": (lambda s: s.update({"layers.0.ffn.gate.tid2eid": torch.ones(96, 2)}), "expert ids are I32 or I64"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_checkpoints_are_named(fault: str, quantized: Path, tmp_path: Path) -> None:
    change, words = BROKEN[fault]
    with pytest.raises(CheckpointError) as caught:
        DeepseekV4.from_checkpoint(edited(quantized, tmp_path, change), backend="reference")
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_truncated_file_is_named(quantized: Path, tmp_path: Path) -> None:
    edited(quantized, tmp_path, lambda stored: None)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged") as caught:
        Checkpoint.open(tmp_path)
    assert file.name in str(caught.value)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        Checkpoint.open(tmp_path)


def test_missing_shard_is_named(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "copy")
    (tmp_path / "copy" / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    victim = sorted((tmp_path / "copy").glob("*.safetensors"))[-1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=victim.name):
        Checkpoint.open(tmp_path / "copy")


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        Checkpoint.open(tmp_path)


def test_simulation_needs_a_quantised_checkpoint(plain: Path) -> None:
    with pytest.raises(ConfigError, match="not quantised"):
        DeepseekV4.from_checkpoint(plain, simulate=True, backend="reference")

"""Configurations: the published files, every spelling, and the texts of what is wrong with one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings

from hal.errors import ConfigError
from hal.models.deepseek_v4.calls import Numerics, calls, uses
from hal.models.deepseek_v4.config import DeepseekV4Config, Quantization
from hal.models.deepseek_v4.config_reader import load, packaged, parse
from hal.models.deepseek_v4.tensors import tensors

from . import conftest as lab

INFERENCE = {
    "vocab_size": 129280, "dim": 4096, "moe_inter_dim": 2048, "n_layers": 43, "n_hash_layers": 3, "n_heads": 64,
    "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 6, "score_func": "sqrtsoftplus",
    "route_scale": 1.5, "swiglu_limit": 10.0, "q_lora_rank": 1024, "head_dim": 512, "rope_head_dim": 64, "o_groups": 8,
    "o_lora_rank": 1024, "window_size": 128, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0], "original_seq_len": 65536,
    "rope_theta": 10000, "compress_rope_theta": 160000, "rope_factor": 16, "beta_fast": 32, "beta_slow": 1,
    "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "hc_mult": 4, "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "norm_eps": 1e-6, "n_mtp_layers": 1, "dtype": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4",
}  # fmt: skip


def flash() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(packaged()["deepseek-v4-flash"].read_text())
    return data


def test_published_sizes() -> None:
    kinds = {
        name: [sum(config.kind(layer) == kind for layer in config.layers) for kind in ("swa", "csa", "hca")]
        for name in packaged()
        for config in [load(name)]
    }
    assert kinds == {
        "deepseek-v4-flash": [3, 21, 20],
        "deepseek-v4-flash-base": [3, 21, 20],
        "deepseek-v4-pro": [1, 30, 31],
    }


@pytest.mark.parametrize(
    ("name", "billions", "with_mtp"), [("deepseek-v4-pro", 1573.0, 1598.8), ("deepseek-v4-flash", 284.3, 290.9)]
)
def test_parameter_counts(name: str, billions: float, with_mtp: float) -> None:
    """The published totals; a wrong or forgotten shape moves them."""
    config = load(name)

    def total(config: DeepseekV4Config) -> float:
        count = 0
        for spec in tensors(config):
            size = 1
            for extent in spec.shape:
                size *= extent
            count += 0 if spec.kind == "ids" else size
        return round(count / 1e9, 1)

    assert (total(replace(config, num_nextn_predict_layers=0)), total(config)) == (billions, with_mtp)


def test_inference_form_equals_official() -> None:
    ours, official = parse(INFERENCE), load("DeepSeek-V4-Flash")
    assert ours == official


def test_transformers_form_equals_official(tmp_path: Path) -> None:
    """The official file, read and written by transformers, means the same model."""
    data = flash()
    transformers.DeepseekV4Config(**data).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "layer_types" in written
    assert set(written["rope_parameters"]) == {"main", "compress"}
    assert load(tmp_path) == load("deepseek-v4-flash")


@settings(max_examples=30, deadline=None)
@given(config=lab.configurations())
def test_official_form_reads_back(config: DeepseekV4Config) -> None:
    quantized = replace(config, quantization=Quantization("fp8"), num_nextn_predict_layers=1)
    for each in (config, quantized):
        assert parse(json.loads(json.dumps(each.to_dict()))) == each


@settings(max_examples=30, deadline=None)
@given(config=lab.configurations())
def test_transformers_form_reads_back(config: DeepseekV4Config) -> None:
    read = parse(json.loads(lab.to_transformers(config).to_json_string()))
    ignored = {"num_nextn_predict_layers", "rope_original_length", "max_position_embeddings", "eos_token_ids"}
    ours, theirs = asdict(config), asdict(read)
    assert {k: v for k, v in ours.items() if k not in ignored} == {k: v for k, v in theirs.items() if k not in ignored}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slidng_window": 128}, "`slidng_window` is not a field of DeepSeek-V4's configuration"),
        ({"slidng_window": 128}, "Did you mean `sliding_window`"),
        ({"model_type": "deepseek_v41"}, "`model_type` is 'deepseek_v41'; DeepSeek-V4 has 'deepseek_v4'"),
        ({"num_key_value_heads": 8}, "`num_key_value_heads` is 8"),
        ({"compress_ratios": [0, 4]}, "`compress_ratios` has 2 entries for 43 layers and 1 MTP blocks"),
        ({"compress_ratios": [0, 0, *[4, 128] * 20, 4, 4]}, "compresses the MTP block"),
        ({"compress_ratios": None}, "nothing says which layer attends how"),
        ({"layer_types": ["sliding_attention"] * 43}, "`layer_types` says"),
        ({"layer_types": ["linear_attention"] * 43}, "contains 'linear_attention'"),
        ({"mlp_layer_types": ["hash_moe"] * 2 + ["moe"] * 41}, "`num_hash_layers` says 3 but `mlp_layer_types` says 2"),
        ({"partial_rotary_factor": 0.25}, "`qk_rope_head_dim` says 64 but `partial_rotary_factor` says 128"),
        ({"o_groups": 7}, "does not divide the 64 heads"),
        ({"num_experts_per_tok": 300}, "more than the 256 routed experts"),
        ({"index_head_dim": 96}, "needs a power of two"),
        ({"hidden_size": "4096"}, "`hidden_size` is '4096', not a whole number"),
        ({"hc_mult": 0}, "`hc_mult` is 0, it must be at least 1"),
        ({"hidden_size": ...}, "`hidden_size` is missing"),
        ({"expert_dtype": "int4"}, "`expert_dtype` is 'int4', not fp4 or fp8"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "DeepSeek-V4 uses `yarn`"),
        (
            {"rope_parameters": {"main": {"rope_theta": 5000}, "compress": {}}, "rope_scaling": None},
            "`rope_theta` says",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 16, "mscale": 1.0}}, "`rope_scaling.mscale` is not a field"),
        ({"scoring_func": "relu"}, "`scoring_func` is 'relu'"),
    ],
)
def test_wrong_fields_are_named(change: dict[str, Any], words: str) -> None:
    data = {**flash(), **change}
    with pytest.raises(ConfigError) as caught:
        parse({name: value for name, value in data.items() if value is not ...})
    assert words.lower() in str(caught.value).lower()


def test_wrong_quantization_is_named() -> None:
    data = flash()
    data["quantization_config"] = {**data["quantization_config"], "weight_block_size": [32, 32]}
    with pytest.raises(ConfigError, match="weight_block_size"):
        parse(data)
    data["quantization_config"] = {**flash()["quantization_config"], "expert_dtype": "fp8"}
    with pytest.raises(ConfigError, match="`expert_dtype` says 'fp4' but `quantization_config"):
        parse(data)


def test_missing_file_names_the_packaged_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deepseek-v4-flash-base"):
        load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load(tmp_path)


def test_configuration_and_calls_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from hal.models.deepseek_v4.calls import Numerics, calls, uses\n"
        "from hal.models.deepseek_v4.config_reader import load\n"
        "config = load('deepseek-v4-pro')\n"
        "names = {c.name for c in calls(config, Numerics.published(config))}\n"
        "assert set(uses(config)) == names, set(uses(config)) ^ names\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", packaged())
def test_calls_have_the_checkpoints_shapes(name: str) -> None:
    """Every quantised weight but `wo_a` and the routed experts is in exactly one call's count, at its shape."""
    config = load(name)
    counts = uses(config)
    from_calls = Counter[tuple[int, ...]]()
    for call in calls(config, Numerics.published(config)):
        if call.contract == "quant.matmul":
            from_calls[call.sizes["outputs"], call.sizes["features"]] += counts[call.title]
    linear = [spec for spec in tensors(config) if spec.kind == "linear" and not spec.name.endswith(".wo_a.weight")]
    assert from_calls == Counter(spec.shape for spec in linear)


@pytest.mark.parametrize(
    ("allow", "layouts", "linear", "experts", "rows"),
    [
        ((), ("w8a8_int8", "w4a8_int_256"), "fp8_block128", "mxfp4", "e4m3_128"),
        (("requantize",), ("w8a8_int8", "w4a8_int_256"), "w8a8_int8", "w8a8_int8", "int8_token"),
        (("requantize4",), ("w8a8_int8", "w4a8_int_256"), "fp8_block128", "w4a8_int_256", "int8_token"),
        (("requantize", "requantize4"), ("w8a8_int8", "w4a8_int"), "w8a8_int8", "w4a8_int", "int8_token"),
        (
            ("requantize", "requantize4"),
            ("fp8_block128", "mxfp4", "w8a8_int8", "w4a8_int"),
            "fp8_block128",
            "mxfp4",
            "e4m3_128",
        ),
        (("requantize", "requantize4"), None, "fp8_block128", "mxfp4", "e4m3_128"),
    ],
)
def test_lossy_weights_are_permitted_and_preferred(
    allow: tuple[str, ...], layouts: tuple[str, ...] | None, linear: str, experts: str, rows: str
) -> None:
    """Only where they are allowed, and only on chips that multiply them better than what is published."""
    config = load("deepseek-v4-flash")
    numerics = Numerics.on(config, "npu", layouts, allow=allow)
    assert (numerics.linear, numerics.experts, numerics.expert_activation) == (linear, experts, rows)
    assert numerics.integers is (linear != "fp8_block128" or experts != "mxfp4")

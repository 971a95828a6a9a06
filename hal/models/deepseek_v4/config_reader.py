"""Reads every published spelling of a DeepSeek-V4 configuration.

Three are understood: the official `config.json` of DeepSeek-V4-Flash, -Pro and -Flash-Base; the form that transformers
5 writes (`layer_types`, nested `rope_parameters`); and `inference/config.json` of the official inference code (`dim`,
`n_layers`...).
An unknown field, a missing one, or two that contradict each other is a `ConfigError` that names the field.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hal.errors import ConfigError
from hal.models.deepseek_v4.config import CSA_RATIO, DeepseekV4Config, Quantization, field_error

_INFERENCE = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "rope_head_dim": "qk_rope_head_dim",
    "moe_inter_dim": "moe_intermediate_size", "n_activated_experts": "num_experts_per_tok",
    "n_hash_layers": "num_hash_layers",
    "score_func": "scoring_func", "route_scale": "routed_scaling_factor", "window_size": "sliding_window",
    "norm_eps": "rms_norm_eps", "n_mtp_layers": "num_nextn_predict_layers", "original_seq_len": "rope_original_length",
    "rope_factor": "rope_factor", "beta_fast": "rope_beta_fast", "beta_slow": "rope_beta_slow",
    "max_seq_len": "max_position_embeddings",
}  # fmt: skip
"""Field names of `inference/config.json` (official inference code, `ModelArgs`) and their names here."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("deepseek_v4",),
    "num_key_value_heads": (1,),
    "n_shared_experts": (1,),
    "hidden_act": ("silu",),
    "topk_method": ("noaux_tc",),
    "norm_topk_prob": (True,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (False,),
}
"""Fields that the architecture leaves no choice in, and what they may say."""

_IRRELEVANT = {
    "architectures", "attention_dropout", "auto_map", "dtype", "initializer_range", "max_batch_size", "name_or_path",
    "_name_or_path", "output_router_logits", "pad_token_id", "router_aux_loss_coef", "router_jitter_noise",
    "scale_dtype",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Fields about training, storage or the writer: they do not change what is computed."""

_NESTED = {
    "compress_rates", "eos_token_id", "expert_dtype", "layer_types", "mlp_layer_types", "partial_rotary_factor",
    "quantization_config", "rope_parameters", "rope_scaling", "scale_fmt",
}  # fmt: skip

_SCALING = {
    "attention_factor", "beta_fast", "beta_slow", "factor", "original_max_position_embeddings", "partial_rotary_factor",
    "rope_theta", "rope_type", "type",
}  # fmt: skip

_OWN = {field.name for field in fields(DeepseekV4Config)} - {"quantization", "eos_token_ids"}
_KINDS = {"sliding_attention": 0, "compressed_sparse_attention": CSA_RATIO, "heavily_compressed_attention": 128}


def load(source: str | Path | Mapping[str, Any]) -> DeepseekV4Config:
    """Read a configuration: a mapping, a `config.json`, a folder that has one, or the name of a packaged one.

    Packaged names are `deepseek-v4-flash`, `deepseek-v4-pro` and `deepseek-v4-flash-base` (any case).

    Raises:
        ConfigError: nothing there, not JSON, or not a DeepSeek-V4 configuration; the text names the file and the field.
    """
    if isinstance(source, Mapping):
        return parse(source)
    path = packaged().get(str(source).lower()) or Path(source)
    if path.is_dir():
        path = path / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no DeepSeek-V4 configuration at {str(source)!r}",
            where=str(path),
            fix=f"give a folder with config.json, such a file, or one of {', '.join(packaged())}",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"the configuration cannot be read: {error}", where=str(path), fix="restore the file"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError("the configuration is not a JSON object", where=str(path), fix="restore the file")
    try:
        return parse(data)
    except ConfigError as error:
        raise type(error)(error.what, where=str(path), fix=error.fix) from None


def packaged() -> dict[str, Path]:
    """The published configurations that are installed with `hal`, by name."""
    folder = Path(__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def parse(data: Mapping[str, Any]) -> DeepseekV4Config:
    """Make a configuration from any of the three published spellings.

    Raises:
        ConfigError: an unknown field (with the nearest known name), a missing one, a wrong type, or a contradiction.
    """
    inference = "dim" in data or "n_layers" in data
    renamed = _INFERENCE if inference else {}
    own = (
        _OWN - set(_INFERENCE.values())
        if inference
        else _OWN - {n for n in _OWN if n.startswith("rope_") and n != "rope_theta"}
    )
    known = own | set(renamed) | set(_FIXED) | _IRRELEVANT | _NESTED
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else "remove it, or use the release of hal that knows it"
            raise field_error(name, "is not a field of DeepSeek-V4's configuration", hint)
    for name, allowed in _FIXED.items():
        if name in data and data[name] not in allowed:
            raise field_error(
                name, f"is {data[name]!r}; DeepSeek-V4 has {allowed[0]!r}", "use a DeepSeek-V4 configuration"
            )

    values: dict[str, Any] = {
        renamed.get(name, name): value for name, value in data.items() if name in own | set(renamed)
    }
    if not inference:
        _ropes(data, values)
        _rope_dim(data, values)
        _hash_layers(data, values)
    values["compress_ratios"] = _ratios(data, values)
    values["quantization"] = _quantization(data)
    eos = data.get("eos_token_id", 1)
    values["eos_token_ids"] = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    for field in fields(DeepseekV4Config):
        if field.name in values:
            values[field.name] = _typed(field.name, str(field.type), values[field.name])
    try:
        return DeepseekV4Config(**values)
    except TypeError as error:
        missing = [f.name for f in fields(DeepseekV4Config) if f.name in str(error)]
        spelled = {own: there for there, own in renamed.items()}
        raise field_error(
            ", ".join(spelled.get(n, n) for n in missing), "is missing", "add it to the configuration"
        ) from None


def _typed(name: str, kind: str, value: Any) -> Any:
    """`value` as the field's type; a number that is not one is an error, not a surprise later."""
    if kind in ("int", "float"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (kind == "int" and value != int(value)):
            raise field_error(name, f"is {value!r}, not {'a whole number' if kind == 'int' else 'a number'}")
        return int(value) if kind == "int" else float(value)
    if kind == "tuple[int, ...]":
        return tuple(_typed(name, "int", each) for each in value)
    return value


def _agree(field: str, value: Any, other: str, expected: Any) -> None:
    if value != expected:
        raise field_error(field, f"says {value!r} but `{other}` says {expected!r}", "make the two fields agree")


def _number(data: Mapping[str, Any], name: str) -> int:
    if name not in data:
        raise field_error(name, "is missing", "add it to the configuration")
    value: int = _typed(name, "int", data[name])
    return value


def _ratios(data: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[int, ...]:
    """One ratio per layer from `compress_ratios` (which may append the MTP blocks' zeros) and/or `layer_types`."""
    layers = _number(values, "num_hidden_layers")
    mtp = int(values.get("num_nextn_predict_layers", 0))
    given: list[int] | None = None
    if data.get("compress_ratios") is not None:
        stated = list(_typed("compress_ratios", "tuple[int, ...]", data["compress_ratios"]))
        if len(stated) not in (layers, layers + mtp):
            raise field_error("compress_ratios", f"has {len(stated)} entries for {layers} layers and {mtp} MTP blocks")
        if any(stated[layers:]):
            raise field_error(
                "compress_ratios", f"compresses the MTP block ({stated[layers:]}); it is sliding-window only"
            )
        given = stated[:layers]
    if data.get("layer_types") is not None:
        rates = {**_KINDS, **(data.get("compress_rates") or {})}
        _agree("compress_rates", rates["compressed_sparse_attention"], "the architecture", CSA_RATIO)
        unknown = [kind for kind in data["layer_types"] if kind not in _KINDS]
        if unknown:
            raise field_error("layer_types", f"contains {unknown[0]!r}; the kinds are {', '.join(_KINDS)}")
        typed = [int(rates[kind]) for kind in data["layer_types"]]
        if given is not None:
            _agree("layer_types", typed, "compress_ratios", given)
        given = typed
    if given is None:
        raise field_error(
            "compress_ratios", "is missing, and so is `layer_types`: nothing says which layer attends how"
        )
    return tuple(given)


def _hash_layers(data: Mapping[str, Any], values: dict[str, Any]) -> None:
    kinds = data.get("mlp_layer_types")
    if kinds is None:
        return
    count = sum(kind == "hash_moe" for kind in kinds)
    if list(kinds) != ["hash_moe"] * count + ["moe"] * (len(kinds) - count):
        raise field_error("mlp_layer_types", "must be `hash_moe` for the first layers and `moe` for the others")
    _agree("mlp_layer_types", len(kinds), "num_hidden_layers", values.get("num_hidden_layers"))
    if "num_hash_layers" in values:
        _agree("num_hash_layers", values["num_hash_layers"], "mlp_layer_types", count)
    values["num_hash_layers"] = count


def _rope_dim(data: Mapping[str, Any], values: dict[str, Any]) -> None:
    nested = data.get("rope_parameters") or {}
    fractions = {"partial_rotary_factor": data.get("partial_rotary_factor")}
    for part in ("main", "compress"):
        fractions[f"rope_parameters.{part}.partial_rotary_factor"] = nested.get(part, {}).get("partial_rotary_factor")
    for name, fraction in fractions.items():
        if fraction is not None:
            dim = int(_number(values, "head_dim") * fraction)
            _agree("qk_rope_head_dim", values.setdefault("qk_rope_head_dim", dim), name, dim)


def _ropes(data: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Frequencies: `rope_scaling`, or transformers' `rope_parameters` (nested by `main` and `compress`)."""
    nested = data.get("rope_parameters") or {}
    if "main" in nested and "compress" in nested:
        if data.get("rope_scaling"):
            raise field_error("rope_scaling", "is given beside `rope_parameters`", "keep one of the two")
        for part, theta in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
            if "rope_theta" in nested[part]:
                if theta in values:
                    _agree(theta, values[theta], f"rope_parameters.{part}.rope_theta", nested[part]["rope_theta"])
                values[theta] = nested[part]["rope_theta"]
        if nested["main"].get("rope_type", "default") != "default":
            raise field_error(
                "rope_parameters.main.rope_type", f"is {nested['main']['rope_type']!r}; it must be `default`"
            )
        scaling = nested["compress"]
    else:
        scaling = data.get("rope_scaling") or nested
    for name in scaling:
        if name not in _SCALING:
            raise field_error(f"rope_scaling.{name}", "is not a field of DeepSeek-V4's configuration")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        values["rope_factor"] = 1.0
        return
    if kind != "yarn":
        raise field_error("rope_scaling.type", f"is {kind!r}; DeepSeek-V4 uses `yarn`")
    if scaling.get("attention_factor", 1.0) not in (1.0, None):
        raise field_error("rope_parameters.attention_factor", "is not 1; DeepSeek-V4 does not scale cosines and sines")
    for theirs, ours in (
        ("factor", "rope_factor"),
        ("original_max_position_embeddings", "rope_original_length"),
        ("beta_fast", "rope_beta_fast"),
        ("beta_slow", "rope_beta_slow"),
    ):
        if theirs in scaling:
            values[ours] = scaling[theirs]


def _quantization(data: Mapping[str, Any]) -> Quantization | None:
    """How weights are stored: `quantization_config`, or `dtype` and `scale_fmt` of the inference form."""
    config = data.get("quantization_config")
    if config is None:
        if data.get("dtype") != "fp8":
            return None
        config = {"scale_fmt": data.get("scale_fmt")}
    expected = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise field_error(f"quantization_config.{name}", f"is {config[name]!r}; this reader knows {value!r}")
    unknown = set(config) - set(expected) - {"scale_fmt", "expert_dtype", "modules_to_not_convert"}
    if unknown:
        raise field_error(f"quantization_config.{sorted(unknown)[0]}", "is not a field of DeepSeek-V4's configuration")
    if "expert_dtype" in config and "expert_dtype" in data:
        _agree("expert_dtype", data["expert_dtype"], "quantization_config.expert_dtype", config["expert_dtype"])
    expert_dtype = config.get("expert_dtype", data.get("expert_dtype")) or "fp4"
    if expert_dtype not in ("fp4", "fp8"):
        raise field_error("expert_dtype", f"is {expert_dtype!r}, not fp4 or fp8")
    scale_fmt = config.get("scale_fmt")
    if scale_fmt not in ("ue8m0", None):
        raise field_error("quantization_config.scale_fmt", f"is {scale_fmt!r}, not ue8m0 or null")
    return Quantization(expert_dtype, scale_fmt)

"""`hal plan`: whether a model runs on a chip, operator by operator, and what it costs; no weights, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, binary, quantity, show, table

if TYPE_CHECKING:
    from hal.cost import Storage
    from hal.feasibility import Verdict
    from hal.models.deepseek_v4.config import DeepseekV4Config

PUBLISHED = "cuda:sm100"
"""The chip whose cache layouts are the published ones: 584-byte records and MXFP4 index rows."""


def command(
    model: Annotated[str, typer.Argument(help="A published name (deepseek-v4-pro), a checkpoint, or a config.json.")],
    on: Annotated[
        str | None, typer.Option(help="A chip, here or not: cuda:sm100, ascend:a3, cpu. Default: HAL_BACKEND.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one request. Default: the model's maximum.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of activations: float32, bfloat16 or float64.")] = None,
    lock: Annotated[Path | None, typer.Option(help="Write the decisions here; read them with HAL_CONFIG.")] = None,
    json: Json = False,
) -> None:
    """Say whether a model runs on a chip, with every blocker at once, and count its bytes and FLOPs."""
    from hal.feasibility import installed, layouts_on, numerics_on, survey, target_named
    from hal.models.deepseek_v4.config_reader import load
    from hal.planning import plan
    from hal.policy import Policy
    from hal.selection import target_of

    config = load(model)
    policy = Policy.current()
    target = target_named(on) if on else target_of(policy)
    context = context or config.max_position_embeddings
    numerics = numerics_on(target, config, dtype)
    verdicts = survey(config, numerics, target, policy, context)
    if lock:
        made = plan([verdict.call for verdict in verdicts], target=target, policy=policy)
        made.lock.write(lock)
    data = {
        "model": model,
        "target": target.name,
        "here": target.present,
        "backend_installed": installed(target),
        "context": context,
        "feasible": not any(verdict.blockers for verdict in verdicts),
        "numerics": asdict(numerics),
        "operators": [_operator(verdict) for verdict in verdicts],
        "layouts_known": layouts_on(target) is not None,
        **costs(config, numerics, context),
        "published_layouts": _figures(config, numerics_on(target_named(PUBLISHED), config), context),
    }
    show(data, json, lambda: _view(data))


def _operator(verdict: Verdict) -> dict[str, Any]:
    choice = verdict.choice
    return {
        "call": verdict.call.title,
        "contract": verdict.call.contract,
        "blocks": verdict.blocks,
        "kernel": choice.winner if choice else None,
        "blockers": list(verdict.blockers),
    }


def costs(config: DeepseekV4Config, storage: Storage, context: int) -> dict[str, Any]:
    """Weights, cache and FLOPs of a model in plain data."""
    from hal import cost

    weights = cost.weight_bytes(config)
    cache = cost.cache_bytes(config, storage, context)
    work = cost.token_work(config, storage, context)
    return {
        "weights": {
            "bytes": sum(weights.values()),
            "by_storage": weights,
            "parameters": cost.parameters(config),
            "active_parameters": cost.active_parameters(config),
        },
        "cache": {**asdict(cache), "bytes": cache.total, "allocated": cache.total + cache.padding},
        "flops": {
            "per_token": cost.total_flops(work),
            "by_part": {each.part: {"flops": each.flops, "format": each.format} for each in work},
            "weighting": cost.WEIGHTING,
        },
        "layouts": {"window": storage.window, "compressed": storage.compressed, "index": storage.index},
        "figures": _figures(config, storage, context),
        "deepseek_v3_2": {
            "cache_bytes": cost.V32.cache_bytes(context),
            "cache_bytes_per_token": cost.V32.cache_bytes(1),
            "flops_per_token": cost.total_flops(cost.V32.token_work(context)),
        },
    }


def _figures(config: DeepseekV4Config, storage: Storage, context: int) -> dict[str, Any]:
    """The figures to compare, and their share of DeepSeek-V3.2's."""
    from hal import cost

    cache = cost.cache_bytes(config, storage, context)
    flops = cost.total_flops(cost.token_work(config, storage, context))
    return {
        "weight_bytes": cost.held_bytes(config, storage),
        "cache_bytes": cache.total,
        "cache_bytes_per_token": cache.per_token,
        "flops_per_token": flops,
        "cache_share_of_v3_2": cache.total / cost.V32.cache_bytes(context),
        "flops_share_of_v3_2": flops / cost.total_flops(cost.V32.token_work(context)),
    }


def _view(data: dict[str, Any]) -> RenderableType:
    return Group(
        _headline(data),
        _operators(data),
        _verdict(data),
        Text(),
        _costs(data),
        *(Padding(Text(line, style="dim"), (0, 2)) for line in _notes(data)),
    )


def _headline(data: dict[str, Any]) -> Text:
    where = "this machine" if data["here"] else "described, not in this machine"
    line = Text.assemble((data["model"], "bold"), " on ", (data["target"], "bold"), f" ({where})")
    return line + Text(f", {data['context']:,} tokens per request\n")


def _operators(data: dict[str, Any]) -> Table:
    """One row per call; neighbours that are blocked for the same reason share its text."""
    made = table("call", "contract", "blocks", "kernel", right=("blocks",))
    before: list[str] = []
    for row in data["operators"]:
        if row["kernel"]:
            cell = Text(row["kernel"], style="green")
        else:
            cell = Text("as above" if row["blockers"] == before else "; ".join(row["blockers"]), style="red")
        before = row["blockers"]
        made.add_row(row["call"], row["contract"], str(row["blocks"]), cell)
    return made


def _verdict(data: dict[str, Any]) -> Text:
    blocked = sum(bool(row["blockers"]) for row in data["operators"])
    if not blocked:
        return Text(f"Every one of the {len(data['operators'])} operator calls is served.", style="bold green")
    return Text(f"{blocked} of {len(data['operators'])} operator calls are blocked.", style="bold red")


def _costs(data: dict[str, Any]) -> Table:
    """Figures of this chip's layouts, of the published ones where they differ, and of DeepSeek-V3.2."""
    here, published, v32 = data["figures"], data["published_layouts"], data["deepseek_v3_2"]
    columns = [("this plan", here)] if here == published else [("this plan", here), ("published layouts", published)]
    made = table(
        "", *(name for name, _ in columns), "DeepSeek-V3.2", right=(*(name for name, _ in columns), "DeepSeek-V3.2")
    )
    made.add_row("weights", *(quantity(figures["weight_bytes"], "B") for _, figures in columns), "")
    for label, name, show_number in (
        ("cache of one request", "cache_bytes", binary),
        ("cache per token", "cache_bytes_per_token", lambda count: f"{count:,.0f} B"),
        ("FLOPs per token, FP8-equivalent", "flops_per_token", lambda flops: quantity(flops, "FLOP")),
    ):
        made.add_row(label, *(show_number(figures[name]) for _, figures in columns), show_number(v32[name]))
    for label, name in (
        ("share of V3.2's cache", "cache_share_of_v3_2"),
        ("share of V3.2's FLOPs", "flops_share_of_v3_2"),
    ):
        made.add_row(label, *(f"{100 * figures[name]:.1f} %" for _, figures in columns), "")
    return made


def _notes(data: dict[str, Any]) -> Iterator[str]:
    weights, cache, layouts = data["weights"], data["cache"], data["layouts"]
    stored = ", ".join(f"{kind} {quantity(count, 'B')}" for kind, count in weights["by_storage"].items() if count > 1e8)
    met = f"{weights['active_parameters'] / 1e9:,.1f} of {weights['parameters'] / 1e9:,.1f} billion parameters"
    published = quantity(weights["bytes"], "B")
    yield f"weights: {published} published, {stored}; a token meets {met}"
    known = (
        "" if data["layouts_known"] else f" (those of {data['target']} are not known; these are hal's portable ones)"
    )
    yield (
        f"cache: {layouts['compressed']} entries, {layouts['index']} index rows, {layouts['window']} windows{known}; "
        f"of it windows {binary(cache['window'])}, float32 compressor states {binary(cache['state'])}; "
        f"whole pages add {binary(cache['padding'])}"
    )
    used = {each["format"] for each in data["flops"]["by_part"].values()}
    weighting = ", ".join(f"{name} {weight:g}" for name, weight in data["flops"]["weighting"].items() if name in used)
    parts = sorted(data["flops"]["by_part"].items(), key=lambda item: -item[1]["flops"])[:4]
    most = ", ".join(f"{part} {quantity(each['flops'], 'FLOP')} in {each['format']}" for part, each in parts)
    yield (
        f"FLOPs: two per multiply-add, weighted by the bytes of its operands: {weighting}; FP4 weights that meet FP8 "
        f"activations count as FP8; most are {most}"
    )

"""Every subcommand: tables for people, JSON for programs, one paragraph for errors."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hal import plugins
from hal.cli.app import COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BACKEND", "OPS", "ALLOW", "TRACE", "CHECK", "CONFIG"):
        monkeypatch.delenv(f"HAL_{name}", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def hal(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def data(*words: str) -> Any:
    return json.loads(hal(*words, "--json").stdout)


def test_help_names_every_command() -> None:
    text = hal("--help").stdout
    assert all(name.replace("_", "-") in text for name in COMMANDS)


def test_version() -> None:
    from importlib.metadata import version

    assert hal("--version").stdout == f"hal {version('hal-accel')}\n"


@pytest.mark.parametrize(
    "words", [["env"], ["backends"], ["ops"], ["explain", "moe.route"], ["plan", "deepseek-v4-pro"]]
)
def test_table_and_json_agree(words: list[str]) -> None:
    assert hal(*words).stdout.strip()
    assert data(*words)


# -- env


def test_env_says_where_values_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_OPS", "attn.*=cpu.*|*")
    monkeypatch.setenv("HAL_CHECK", "attn.*/100")
    rows = {row["variable"]: (row["value"], row["origin"]) for row in data("env")}
    assert len(rows) == 6
    assert rows["HAL_OPS"] == ("attn.*=cpu.*|*", "HAL_OPS")
    assert rows["HAL_CHECK"] == ("attn.*/100", "HAL_CHECK")
    assert rows["HAL_BACKEND"] == ("auto", "default")


# -- errors


@pytest.mark.parametrize(
    ("words", "variable", "said"),
    [
        (["env"], "HAL_BAKCEND", "did you mean 'HAL_BACKEND'"),
        (["plan", "deepseek-v4-prot"], "", "deepseek-v4-pro"),
        (["plan", "deepseek-v4-pro", "--on", "ascend:a33"], "", "did you mean 'ascend:a3'"),
        (["plan", "deepseek-v4-pro", "--on", "ascend"], "", "ascend:a2"),
        (["explain", "attn.atend"], "", "did you mean 'attn.attend'"),
        (["explain", "attn.attend", "heds=3"], "", "did you mean 'heads'"),
        (["explain", "attn.attend", "heads=many"], "", "name=value"),
        (["generate", "nowhere", "--prompt", "x"], "", "nowhere"),
    ],
)
def test_error_is_one_paragraph(words: list[str], variable: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable:
        monkeypatch.setenv(variable, "cpu")
    result = hal(*words, code=2)
    assert result.stdout == ""
    assert said.lower() in result.stderr.lower()
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# -- backends and doctor


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three registered backends: one that works, one that raises, one that was written for other hooks."""
    module = type(sys)("hal_test_future")
    from hal.target import Backend

    @plugins.hookimpl
    def hal_backend() -> Backend:
        return Backend("future", "hal-future", "cpu", api="99.0")

    module.hal_backend = hal_backend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hal_test_future", module)
    entries = [
        EntryPoint("cpu", "hal_cpu.plugin", plugins.GROUP),
        EntryPoint("bad", "hal_test_missing", plugins.GROUP),
        EntryPoint("future", "hal_test_future", plugins.GROUP),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry for entry in entries if entry.group == group])
    plugins.load.cache_clear()
    yield
    plugins.load.cache_clear()


@pytest.mark.usefixtures("_registered")
def test_state_of_every_backend() -> None:
    states = {row["name"]: row for row in data("backends")}
    assert states["cpu"]["state"] == "ready"
    assert states["cpu"]["targets"] == ["cpu"]
    assert states["bad"]["state"] == "Broken"
    assert "hal_test_missing" in states["bad"]["why"]
    assert states["future"]["state"] == "ApiMismatch"
    assert states["ascend"]["state"] == "not installed"
    assert "pip install hal-ascend" in states["ascend"]["why"]


@pytest.mark.usefixtures("_registered")
def test_doctor_imports_kernels() -> None:
    found = data("doctor")
    states = {row["name"]: row["state"] for row in found["backends"]}
    assert (states["cpu"], states["bad"], states["mlu"]) == ("ready", "Broken", "not installed")
    assert found["libraries"]["torch"]
    assert found["torch"] == "imports"


def test_doctor_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    done = python("from hal.cli import main; main()", "doctor", "--json", path=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "libcudart" in found["torch"]
    cpu = next(row for row in found["backends"] if row["name"] == "cpu")
    assert cpu["state"] == "no torch"
    assert "libcudart" in cpu["why"]


def test_doctor_tells_a_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_ALOW", "host")
    assert "HAL_ALLOW" in data("doctor")["environment"]["error"]


# -- ops and explain


def test_ops_lists_contracts_and_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = {row["contract"]: row for row in data("ops")}
    assert rows["attn.select"]["parts"] == ["attn.index_scores"]
    assert {"id": "cpu.attend", "tier": "declared"} in rows["attn.attend"]["kernels"]["cpu"]
    assert rows["attn.attend"]["kernels"]["reference"] == [{"id": "reference.attend", "tier": "defines"}]


def test_explain_says_why_a_kernel_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_ALLOW", "reference")
    found = data("explain", "attn.attend", "heads=64", "q=int8", "tokens=0..8192", "--on", "cpu")
    (call,) = found["calls"]
    assert call["kernels"] == ["reference.attend"]
    assert call["lost"][0]["kernel"] == "cpu.attend"
    assert "int8" in call["lost"][0]["reason"]


def test_explain_shows_parts_of_a_composite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_OPS", "attn.compress=!*")
    (call,) = data("explain", "attn.compress", "ratio=4", "--on", "cpu")["calls"]
    assert call["kernels"] == []
    assert [part["kernels"] for part in call["parts"]] == [["cpu.compress_pool"], ["cpu.store"]]
    assert "cpu.compress_pool" in hal("explain", "attn.compress", "ratio=4", "--on", "cpu").stdout


def test_explain_blocked() -> None:
    (call,) = data("explain", "attn.attend", "q=int8", "--on", "cpu")["calls"]
    assert "int8" in call["blockers"][0]


def test_explain_calls_of_a_model() -> None:
    calls = data("explain", "attn.attend", "--model", "deepseek-v4-flash", "--on", "cpu")["calls"]
    assert [call["call"] for call in calls] == ["csa.attend", "hca128.attend", "swa.attend"]


# -- plan


def test_plan_reproduces_the_headline() -> None:
    for model, flops, cache in (("pro", 27, 10), ("flash", 10, 7)):
        found = data("plan", f"deepseek-v4-{model}", "--on", "cuda:sm100", "--context", "1048576")
        assert round(100 * found["figures"]["flops_share_of_v3_2"]) == flops
        assert int(100 * found["figures"]["cache_share_of_v3_2"]) == cache
        assert found["flops"]["weighting"]["fp4"] == 0.5


@pytest.mark.usefixtures("_registered")
def test_plan_where_the_backend_is_not_installed() -> None:
    found = data("plan", "deepseek-v4-flash", "--on", "ascend:a3")
    assert not found["feasible"]
    assert not found["backend_installed"]
    for row in found["operators"]:
        assert row["blockers"] == ["no backend for ascend:a3 is installed (pip install hal-ascend)"]
    assert found["weights"]["bytes"] > 1.5e11
    assert found["layouts"]["index"] == "index_int8_130"
    assert found["figures"]["cache_bytes"] > found["published_layouts"]["cache_bytes"]


def test_plan_lists_all_blockers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_OPS", "moe.*=!*;quant.matmul=!*")
    found = data("plan", "deepseek-v4-flash", "--on", "cpu")
    blocked = {row["call"] for row in found["operators"] if row["blockers"]}
    assert {"route.hash", "route.top_k", "moe.ffn", "linear.wq_a"} <= blocked
    assert "csa.attend" not in blocked
    (ffn,) = (row for row in found["operators"] if row["call"] == "moe.ffn")
    assert len(ffn["blockers"]) == 3  # dispatch, experts, combine


def test_plan_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    done = python("from hal.cli import main; main()", "plan", "deepseek-v4-pro", "--on", "cpu", "--json", path=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["feasible"]
    assert found["context"] == 1048576
    assert sum(row["blocks"] for row in found["operators"] if row["contract"] == "attn.attend") == 62


def test_plan_reads_a_checkpoint_folder() -> None:
    found = data("plan", str(ROOT / "examples" / "tiny-v4"), "--on", "cpu", "--context", "4096")
    assert found["feasible"]
    assert found["context"] == 4096


def python(code: str, *words: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh Python that looks into `path` first."""
    import os

    env = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=env | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )

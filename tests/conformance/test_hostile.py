"""Backends that misbehave end in a named result, and the run goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hal.conformance.result import CRASHED, FAILED, PASSED
from hal.conformance.verify import Run
from hal.conformance.worker import Worker
from hal.errors import ApiMismatch, BackendError, Broken, Conflict, NoDevice, NotInstalled

PLUGIN = """
from hal.kernel import Kernel
from hal.plugins import hookimpl
from hal.target import Backend, Target
{before}

@hookimpl
def hal_backend():
    return Backend("hostile", "hal-hostile", "cpu", api={api!r})

@hookimpl
def hal_targets():
    {targets}
    return [Target("hostile", "cpu")]

@hookimpl
def {hook}(target):
    {kernels}
    return [Kernel("hostile." + name, "quant.matmul", "hostile_kernels:" + name) for name in {names!r}]
"""

KERNELS = """
import os, signal, sys, time
from hal.formats import simulate
from torch.nn import functional as F

def good(x, weight, *, activation):
    return F.linear(simulate(x.float(), activation), weight.dequantize()).to(x.dtype)

def hangs(x, weight, *, activation):
    if weight.scheme == "mxfp8":
        time.sleep(60)
    return good(x, weight, activation=activation)

def dies(x, weight, *, activation):
    if weight.scheme == "mxfp8":
        os.kill(os.getpid(), signal.SIGABRT)
    return good(x, weight, activation=activation)

def leaves(x, weight, *, activation):
    if weight.scheme == "mxfp8":
        sys.exit(0)
    return good(x, weight, activation=activation)

def lies(x, weight, *, activation):
    return None
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes a distribution on `sys.path` that registers the backend `hostile`."""

    def make(
        before: str = "",
        api: str = "1.0",
        targets: str = "pass",
        kernels: str = "pass",
        hook: str = "hal_kernels",
        names: tuple[str, ...] = ("good",),
    ) -> None:
        words = {"before": before, "api": api, "targets": targets, "kernels": kernels, "hook": hook, "names": names}
        (tmp_path / "hostile.py").write_text(PLUGIN.format(**words))
        (tmp_path / "hostile_kernels.py").write_text(KERNELS)
        information = tmp_path / "hal_hostile-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: hal-hostile\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text("[hal.backends]\nhostile = hostile\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return make


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"before": "raise RuntimeError('no driver')"}, Broken, "RuntimeError: no driver"),
        ({"before": "raise SystemExit(3)"}, Broken, "SystemExit: 3"),
        ({"before": "import os; os._exit(3)"}, Broken, "exited: the process ended with code 3"),
        ({"before": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"}, Broken, "crashed: SIGSEGV"),
        ({"before": "import time; time.sleep(60)"}, Broken, "hung: no answer within"),
        ({"targets": "raise OSError('driver')"}, Broken, "hal_targets raised OSError: driver"),
        ({"kernels": "1 / 0"}, Broken, "hal_kernels raised ZeroDivisionError"),
        ({"hook": "hal_kernel"}, Broken, "Did you mean 'hal_kernels'"),
        ({"api": "2.0"}, ApiMismatch, "written for hooks 2.0"),
        ({"names": ("good", "good")}, Conflict, "two kernels are called 'hostile.good'"),
        ({"targets": "return []"}, NoDevice, "no hostile is in this machine"),
    ],
)
def test_a_backend_that_cannot_be_listed(install: object, words: dict[str, object], error: type, says: str) -> None:
    install(**words)  # type: ignore[operator]
    with pytest.raises(BackendError) as caught:
        Run.plan("hostile", limit=5)
    assert isinstance(caught.value, error), caught.value
    assert says in str(caught.value)


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(NotInstalled, match="hostile"):
        Run.plan("hostile")


def test_kernels_that_hang_die_and_leave_are_named_and_the_run_goes_on(install: object) -> None:
    install(names=("good", "hangs", "dies", "leaves", "lies"))  # type: ignore[operator]
    run = Run.plan("hostile", select="parity/tokens=64", quick=True, limit=4)
    assert len(run.kernels) == 5
    results = list(run.results())
    account = run.account(results)
    assert account.verdict == "failed"
    assert account.planned == len(results) == sum(account.counts.values())
    ends = {name: [r for r in results if r.kernel == f"hostile.{name}"] for name in ("good", "hangs", "dies", "lies")}
    assert {r.status for r in ends["good"]} == {PASSED}
    for name, says in (("hangs", "hung: no answer"), ("dies", "crashed: SIGABRT")):
        assert [says in r.text for r in ends[name] if r.status == CRASHED] == [True]
        assert {r.status for r in ends[name]} == {PASSED, CRASHED}
    assert {r.status for r in ends["lies"]} == {FAILED}
    left = [r for r in results if r.kernel == "hostile.leaves" and r.status != PASSED]
    assert [r.text for r in left] == ["exited: the process ended with code 0"]


def test_an_unknown_case_is_named() -> None:
    with Worker("cpu", "cpu.route") as worker:
        result = worker.run("moe.route/cpu.route/parity/nothing")
    assert (result.status, "no case is called" in result.text) == (CRASHED, True)


PYTEST = [sys.executable, "-m", "pytest", "--pyargs", "hal.conformance", "-p", "no:cacheprovider", "-q"]


def verify(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTEST, *words], capture_output=True, text=True, timeout=100, check=False)


def test_inside_pytest_with_selection_and_sharding() -> None:
    done = verify("--hal-backend=cpu", "--hal-quick", "-k", "route and not chunks", "-n", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("1 kernels, ")
    assert last.endswith("passed: green")


def test_inside_pytest_without_a_backend() -> None:
    done = verify()
    assert done.returncode != 0
    assert "--hal-backend=cpu" in done.stdout + done.stderr


def test_loading_the_plugin_imports_no_torch() -> None:
    code = "import sys, hal.conformance.plugin, hal.conformance.verify, hal.cli.verify; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"

"""Importing hal is quick and brings neither torch nor a backend; choosing one backend imports only that one."""

from __future__ import annotations

import subprocess
import sys


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": "", **environment}
    )
    return done.stdout.strip()


def test_import_is_quick_and_alone() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import hal; spent = time.perf_counter() - began;"
        "print(spent, 'torch' in sys.modules, any(name.startswith('hal_') for name in sys.modules))"
    )
    seconds, torch, backends = min(run(code).split() for _ in range(3))
    assert float(seconds) < 0.060
    assert (torch, backends) == ("False", "False")


def test_planning_needs_no_torch_and_only_the_chosen_backend() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import hal;"
        "made = hal.plan([hal.Call('moe.route', attributes={'top_k': 2})]);"
        "print(made.choices[0].winner, sorted({n.split('.')[0] for n in sys.modules if n.startswith('hal_')}))"
    )
    assert run(code, HAL_BACKEND="cpu") == "cpu.route ['hal_cpu']"
    assert run(code, HAL_BACKEND="reference") == "reference.route []"

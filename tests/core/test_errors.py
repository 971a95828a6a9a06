"""Every error's text, provoked by what really causes it, compared with golden/errors.txt.

Backends that are wrong are installed distributions: a module and a .dist-info folder on the path of a new process.
HAL_UPDATE_GOLDEN would be refused by hal itself, so the switch is called UPDATE_GOLDEN=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hal import errors

GOLDEN = Path(__file__).parent / "golden" / "errors.txt"

GOOD = """
from hal.kernel import Kernel
from hal.constraints import dim, dtype, layout, needs
from hal.plugins import hookimpl
from hal.target import Backend, Target

@hookimpl
def hal_backend():
    return Backend("acme", "hal-acme", "cpu", api="{api}")

@hookimpl
def hal_targets():
    return [{targets}]

@hookimpl
def {hook}(target):
    return [{kernels}]
"""


def module(
    api: str = "1.0", targets: str = "Target('acme:one', 'cpu')", hook: str = "hal_kernels", kernels: str = ""
) -> str:
    return GOOD.format(api=api, targets=targets, hook=hook, kernels=kernels)


ROUTE = "hal.Call('moe.route', name='router', sizes={'experts': 8}, dtypes={'logits': 'float32'})"
PLAN = f"hal.plan([{ROUTE}])"
SMALL = "Kernel('acme.route', 'moe.route', 'hal_acme:route', (dim('tokens').between(0, 4096),))"
ACME = {"HAL_BACKEND": "acme"}

# title: (statement, environment, module of the backend acme or None)
CASES: dict[str, tuple[str, dict[str, str], str | None]] = {
    "UnknownVariable": (PLAN, {"HAL_BACKED": "cpu"}, None),
    "UnknownName, a word of HAL_ALLOW": (PLAN, {"HAL_ALLOW": "reference,hosts"}, None),
    "UnknownName, a kernel": (PLAN, {"HAL_BACKEND": "cpu", "HAL_OPS": "moe.route=cpu.root"}, None),
    "UnknownName, an operator": (PLAN, {"HAL_BACKEND": "cpu", "HAL_OPS": "moe.rout=cpu.*"}, None),
    "BadRule": (PLAN, {"HAL_BACKEND": "cpu", "HAL_OPS": "moe.route:cpu.*"}, None),
    "ConfigError": (PLAN, {"HAL_CONFIG": "nowhere.toml"}, None),
    "NotInstalled": (PLAN, {"HAL_BACKEND": "acne"}, module()),
    "NoDevice": (PLAN, ACME, module(targets="")),
    "NoDevice, another chip": (PLAN, {"HAL_BACKEND": "acme:two"}, module()),
    "NotInstalled, an emulator": (PLAN, {"HAL_BACKEND": "acme@emulated"}, module()),
    "Ambiguous": ("hal.target_of(hal.Policy.current())", {"HAL_BACKEND": "auto", "OTHER": "ajax"}, module()),
    "Conflict": (PLAN, {"HAL_BACKEND": "acme", "OTHER": "acme"}, module()),
    "Conflict, two kernels": (PLAN, ACME, module(kernels=f"{SMALL}, {SMALL}")),
    "ApiMismatch": (PLAN, ACME, module(api="2.0")),
    "Broken, raises at import": (PLAN, ACME, "raise OSError('libacme.so: cannot open')"),
    "Broken, a misspelt hook": (PLAN, ACME, module(hook="hal_kernel")),
    "Broken, raises in a hook": (PLAN, ACME, module(kernels="1 / 0")),
    "Broken, a kernel does not import": (
        f"hal.bind({PLAN})",
        ACME,
        module(kernels="Kernel('acme.route', 'moe.route', 'hal_acme.fast:route')"),
    ),
    "NoKernel": (PLAN, ACME, module()),
    "NoKernel, every reason": (
        f"hal.plan([{ROUTE}, hal.Call('quant.matmul', name='wq', layouts={{'weight': 'mxfp4'}})])",
        ACME,
        module(
            kernels="Kernel('acme.route', 'moe.route', 'm:f', "
            "(dtype('logits').one_of('bfloat16'), needs('tensor_map'))), "
            "Kernel('acme.mm', 'quant.matmul', 'm:f', (layout('weight').one_of('fp8_block128', 'bf16'),))"
        ),
    ),
    "Uncovered": (PLAN, ACME, module(kernels=SMALL)),
    "Forbidden": (
        PLAN,
        ACME,
        module(kernels="Kernel('acme.route', 'moe.route', 'm:f', deterministic=False)"),
    ),
    "Drift": (
        "from hal.lock import Lock; Lock('cpu', {'router': 'moe.route@1: cpu.route@0'}).check("
        + PLAN
        + ".lock, 'hal.lock')",
        {"HAL_BACKEND": "cpu"},
        None,
    ),
    "KernelError": (
        f"import torch; hal.bind({PLAN})['router'](torch.zeros(2, 8), None, None, None)",
        ACME,
        module(kernels="Kernel('acme.route', 'moe.route', 'hal_acme:route')")
        + "\ndef route(*a, **k):\n    return [][0]\n",
    ),
    "ContractError": (
        "from hal.formats import hadamard; import torch; hadamard.hadamard_transform(torch.zeros(1, 100))",
        {},
        None,
    ),
    "CaptureError": ("from hal.diagnosis.record import Capture; Capture('nowhere')", {}, None),
    "CheckpointError": (
        "from hal.models.deepseek_v4 import DeepseekV4; DeepseekV4.from_checkpoint('nowhere')",
        {"HAL_BACKEND": "cpu"},
        None,
    ),
}


def install(folder: Path, name: str, source: str, backend: str) -> None:
    """A distribution hal-<name> with the module hal_<name>, registered as `backend`."""
    (folder / f"hal_{name}.py").write_text(source)
    info = folder / f"hal_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hal-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hal.backends]\n{backend} = hal_{name}\n")


def text_of(title: str, folder: Path) -> str:
    statement, variables, backend = CASES[title]
    if backend is not None:
        install(folder, "acme", backend, "acme")
    if "OTHER" in variables:
        other = module(targets="Target('ajax', 'cpu')").replace('"acme", "hal-acme"', '"ajax", "hal-other"')
        install(folder, "other", other, variables["OTHER"])
    hidden = "import importlib.metadata as m; every = m.entry_points; m.entry_points = lambda **k: [e for e in "
    hidden += "every(**k) if e.name in ('cpu', 'acme', 'ajax')]\n"
    code = f"{hidden}import hal\ntry:\n    {statement}\n"
    code += "except hal.HalError as error:\n    print(type(error).__name__, error)"
    env = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    env |= {**variables, "PYTHONPATH": str(folder), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().replace(str(folder), "FOLDER")


def wrapped(title: str, text: str) -> str:
    return f"{title}\n" + textwrap.indent(textwrap.fill(text, 110, break_on_hyphens=False), "    ")


@pytest.mark.parametrize("title", CASES)
def test_text(title: str, tmp_path: Path) -> None:
    text = wrapped(title, text_of(title, tmp_path))
    assert text.split("\n")[1].split()[0] == title.partition(",")[0], text
    if os.environ.get("UPDATE_GOLDEN"):
        with GOLDEN.open("a") as file:
            file.write(text + "\n\n")
    assert text in GOLDEN.read_text()


def test_every_class_that_users_meet_has_a_text() -> None:
    found = {title.partition(",")[0] for title in CASES}
    every = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.HalError)
    }
    roots = {"HalError", "BackendError", "PlanError"}
    elsewhere = {"HostFallback", "ParityError"}  # tests/conformance
    assert every - found == roots | elsewhere


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Indentation in the docstring is inheritance."""
    above: list[str] = []
    for line in (errors.__doc__ or "").split("\n\n", 1)[1].splitlines():
        name = line.lstrip("│ ├└─").split()[0]
        depth = (len(line) - len(line.lstrip("│ ├└─"))) // 4
        above[depth:] = [name]
        if depth:
            assert getattr(errors, name).__base__.__name__ == above[depth - 1]

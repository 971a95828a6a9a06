"""A backend written for hooks 1.0 under later cores, every part of it really installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import hal, torch
from importlib.metadata import version
call = hal.Call(
    "moe.route",
    sizes={"experts": 4},
    dtypes={"logits": "float32"},
    attributes={"top_k": 2, "scoring": "sigmoid", "scale": 1.0},
)
weights, experts = hal.bind(call)(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), None, None, None)
print(version("hal-accel"), experts.tolist())
"""


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hal-acme as the template writes it today, for hooks 1.0."""
    folder = tmp_path_factory.mktemp("backend")
    command = [sys.executable, "-m", "hal", "new-backend", "acme", "--into", str(folder / "hal-acme")]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "hal-acme"


def core(folder: Path, major: int, minor: int) -> Path:
    """This core's source as the release that has hooks `major.minor`."""
    shutil.copytree(ROOT / "hal", folder / "core" / "hal", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "core" / name)
    specs = folder / "core" / "hal" / "hookspecs.py"
    text, changed = re.subn(r"^API = \(1, \d+\)$", f"API = ({major}, {minor})", specs.read_text(), flags=re.MULTILINE)
    assert changed == 1
    if (major, minor) > (1, 0):
        text += '\n\n@hookspec\ndef hal_later(target: Target) -> list[str]:\n    """A hook that 1.0 did not have."""\n'
    specs.write_text(text)
    project = folder / "core" / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', f'version = "{major}.{minor}.0"'))
    return folder / "core"


def answer(folder: Path, *distributions: Path) -> subprocess.CompletedProcess[str]:
    """Install the distributions in an environment of their own, beside this one's torch, and ask for a kernel."""
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    for distribution in distributions:
        words = ["--no-build-isolation", "--target", str(site), str(distribution)]
        subprocess.run([*install, *words], check=True, capture_output=True, text=True)
    others = [entry for entry in sys.path if entry.endswith("site-packages")]  # without their .pth: no editable hal
    env = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    env |= {"HAL_BACKEND": "acme", "PYTHONPATH": os.pathsep.join([str(site), *others])}
    return subprocess.run([python, "-c", ASK], env=env, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("minor", [0, 1])
def test_it_works_with_every_core_of_its_major_version(minor: int, backend: Path, tmp_path: Path) -> None:
    done = answer(tmp_path, core(tmp_path, 1, minor), backend)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1.{minor}.0 [[1, 3]]\n"


def test_the_next_major_version_refuses_it_in_one_paragraph(backend: Path, tmp_path: Path) -> None:
    done = answer(tmp_path, core(tmp_path, 2, 0), backend)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hal.errors.ApiMismatch: ")
    assert "written for hooks 1.0, this hal has 2.0" in last
    assert "hal-acme" in last

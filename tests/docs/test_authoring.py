"""The packages of docs/authoring, installed as the pages write them: they plan, verify and run the model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/authoring/*.md")))


def block(title: str) -> str:
    """The fenced block of the guide with this title."""
    found = re.search(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found.group(1)


INSTALL = block("commands").splitlines()[0]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An environment that sees this one's packages, and ACME's as the first command of the guide installs it."""
    folder = tmp_path_factory.mktemp("acme")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    here = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "here.pth").write_text("".join(f"import site; site.addsitedir({entry!r})\n" for entry in here))
    package = folder / "hal-acme"
    package.mkdir()
    for name in ("pyproject.toml", "hal_acme.py"):
        (package / name).write_text(block(name))
    scripts = folder / "venv" / "bin"
    for command in ("pip", "hal"):
        module = "pip" if command == "pip" else "hal"
        (scripts / command).write_text(f'#!/bin/sh\nexec "{scripts}/python" -m {module} "$@"\n')
        (scripts / command).chmod(0o755)
    (folder / "examples").symlink_to(ROOT / "examples")
    env = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    env |= {"PATH": f"{scripts}{os.pathsep}{env['PATH']}", "COLUMNS": "120", "XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run(["bash", "-c", INSTALL], cwd=folder, env=env, check=True, capture_output=True)
    return folder, env


def run(title: str, environment: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """What the commands of a block say, by their subcommand."""
    folder, env = environment
    said = {}
    for command in block(title).strip().splitlines():
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command.partition("hal ")[2].split(" ")[0]] = done.stdout + done.stderr
    return said


def test_every_command_of_the_page(environment: tuple[Path, dict[str, str]]) -> None:
    said = run("commands", environment)
    assert "acme.route" in said["explain"]
    assert "green" in said["verify"]
    assert said["generate"].startswith("The for")
    assert "backend acme" in said["generate"]


def test_declared_edges_become_cases(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    *verify, explain = block("edges").strip().splitlines()
    for command, cases in zip(verify, (2, 3), strict=True):
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
        assert f"{cases} = {cases} passed: green" in done.stdout, command + done.stdout + done.stderr
    done = subprocess.run(["bash", "-c", explain], cwd=folder, env=env, capture_output=True, text=True)
    assert "experts is 2048, wanted 1..1024" in " ".join(done.stdout.split()), done.stdout


def test_a_constraint_that_is_too_narrow_is_found(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    command = block("hidden").strip()
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert all(line in done.stdout for line in block("hidden says").strip().splitlines()), done.stdout
    module = folder / "hal-acme" / "hal_acme.py"
    narrow = module.read_text()
    for text in (narrow.replace('        dim("experts").between(1, 1024),\n', ""), narrow):
        module.write_text(text)
        subprocess.run(["bash", "-c", INSTALL], cwd=folder, env=env, check=True)
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
        assert ("1 = 1 passed: green" in done.stdout) == (text != narrow), done.stdout


def test_a_wrong_kernel_is_caught_named_and_put_right(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    package = folder / "hal-acme-fast"
    package.mkdir()
    (package / "pyproject.toml").write_text(block("wrong/pyproject.toml"))
    (package / "hal_acme_fast.py").write_text(block("wrong/hal_acme_fast.py"))
    install, verify = block("wrong").strip().splitlines()
    subprocess.run(["bash", "-c", install], cwd=folder, env=env, check=True, capture_output=True)
    done = subprocess.run(["bash", "-c", verify], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    for line in block("wrong says").strip().splitlines():
        assert line in done.stdout + done.stderr, line
    (package / "hal_acme_fast.py").write_text(block("right/hal_acme_fast.py"))
    said = run("right", environment)
    assert "green" in said["verify"]
    assert all(
        name in said["ops"] for name in ("acme", "cpu", "jax", "reference", "moe.combine", "declared", "defines")
    )
    assert "acme.combine" in run("pack", environment)["explain"]


def test_the_template(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    said = run("template", environment)
    assert "green" in said["verify"]
    assert "backend ajax" in said["generate"]
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--line-length=120", "hal-ajax"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert ruff.returncode == 0, ruff.stdout
    shape = {path.name for path in (folder / "hal-ajax" / "hal_ajax").glob("*.py")}
    assert {"plugin.py", "target.py", "kernels.py", "layouts.py", "attention.py", "experts.py", "matmul.py"} <= shape
    wrong = folder / "hal-ajax" / "hal_ajax" / "matmul.py"
    wrong.write_text(
        wrong.read_text() + "\n\ndef matmul(x, weight, *, activation):\n    return x @ weight.dequantize(x.dtype).T\n"
    )
    done = subprocess.run(
        ["bash", "-c", "hal verify ajax --quick --kernel 'ajax.matmul'"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ajax.matmul" in done.stdout + done.stderr
    assert "hal replay" in done.stdout + done.stderr


def test_the_template_with_a_stand_in(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    said = run("emulated", environment)
    assert "green" in said["verify"]
    assert "backend musa" in said["generate"]
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "-p", "hal_musa"]
    env = env | {"MYPYPATH": f"{ROOT}{os.pathsep}{ROOT / 'emulators'}"}  # mypy does not see editable installs
    done = subprocess.run(mypy, cwd=folder / "hal-musa", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["Ajax"], "lower-case"),
        (["cpu"], "installed already"),
        (["new", "--into", "."], "exists already"),
        (["new", "--emulated"], "needs no stand-in"),
    ],
)
def test_refusals(words: list[str], says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hal", "new-backend", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_the_references_every_missing_call_is_listed(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    command = "HAL_BACKEND=acme hal generate examples/tiny-v4 --prompt x --max-new-tokens 1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    for contract in (
        "attn.attend",
        "attn.index_scores",
        "attn.store",
        "moe.dispatch",
        "quant.matmul",
        "HAL_ALLOW=reference",
    ):
        assert contract in done.stderr
    assert "moe.route" not in done.stderr

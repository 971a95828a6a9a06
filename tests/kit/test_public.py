"""A backend is written with what the reference pages document and nothing else: hal-jax, and the template's package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/reference/*.md"))
DOCUMENTED = {"hal", *re.findall(r"^::: (hal[\w.]*)$", PAGES, re.MULTILINE)}


def taken(folder: Path) -> Iterator[tuple[str, str, str]]:
    """File, module of hal and name of everything that a package imports from the core."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hal":
                yield from ((file.name, str(node.module), alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((file.name, alias.name, "") for alias in node.names if alias.name.split(".")[0] == "hal")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "hal-ajax"
    command = [
        sys.executable,
        "-m",
        "hal",
        "new-backend",
        "ajax",
        "--device-type",
        "musa",
        "--emulated",
        "--into",
        folder,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "hal_ajax"


@pytest.mark.parametrize("which", ["jax", "template"])
def test_only_documented_modules_and_public_names(which: str, template: Path) -> None:
    found = list(taken(template if which == "template" else ROOT / "backends" / "jax" / "hal_jax"))
    assert len(found) > 10
    for file, module, name in found:
        # `from hal import formats` takes a module, too.
        whole = f"{module}.{name}" if (ROOT / f"{module}.{name}".replace(".", "/")).with_suffix("").exists() else module
        assert module in DOCUMENTED or whole in DOCUMENTED, f"{file} looks inside the core: {module}"
        assert not name.startswith("_"), f"{file} takes a private name: {module}.{name}"

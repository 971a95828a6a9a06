"""The model's source imports hal's public names, torch and the standard library; three modules their file's library."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import hal
import hal.models.deepseek_v4

FOLDER = Path(hal.models.deepseek_v4.__file__).parent
ALSO = {"checkpoint.py": {"safetensors"}, "writer.py": {"safetensors"}, "tokenizer.py": {"tokenizers"}}
OWN = "hal.models.deepseek_v4"


def imports(file: Path) -> list[tuple[str, list[str]]]:
    """Modules that a file imports, wherever in it, and the names it takes from each."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            assert node.module is not None
            found.append((node.module, [alias.name for alias in node.names]))
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: file.name)
def test_imports(file: Path) -> None:
    allowed = {"hal", "torch", *sys.stdlib_module_names, *ALSO.get(file.name, ())}
    for module, names in imports(file):
        assert module.split(".")[0] in allowed, module
        assert module == "__future__" or not any(part.startswith("_") for part in [*module.split("."), *names])
        if module == "hal.errors" or module.startswith(OWN):
            continue
        if module.startswith("hal."):
            assert set(names) <= set(hal.__all__), f"{module} has private names"
            assert names, f"{module} is imported whole"


def test_attributes_of_hal_are_public() -> None:
    """`import hal` is used for public names only."""
    for file in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hal":
                assert node.attr in hal.__all__, f"{file.name}: hal.{node.attr}"

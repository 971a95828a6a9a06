"""The model's source imports hal's public names, torch and the standard library; three modules their file's library."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import hal.models.deepseek_v4

FOLDER = Path(hal.models.deepseek_v4.__file__).parent
ALSO = {"checkpoint.py": {"safetensors"}, "writer.py": {"safetensors"}, "tokenizer.py": {"tokenizers"}}
PRIVATE = ("hal.reference", "hal.ops", "hal.plugins", "hal.conformance", "hal.numerics", "hal.cli")


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            assert node.module is not None
            names.add(node.module)
    return names


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: file.name)
def test_imports(file: Path) -> None:
    allowed = {"hal", "torch", *sys.stdlib_module_names, *ALSO.get(file.name, ())}
    names = imported(file)
    assert {name.split(".")[0] for name in names} <= allowed
    assert not [name for name in names if name.startswith(PRIVATE)]
    assert not [
        name for name in names if any(part.startswith("_") and part != "__future__" for part in name.split("."))
    ]

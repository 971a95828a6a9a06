"""What Triton on MLU asks of a kernel's source: a loop over the grid, no atomics, no early return."""

import ast
from pathlib import Path

import pytest

hal_triton = pytest.importorskip("hal_triton")

FOLDER = Path(hal_triton.__file__).parent / "kernels"
KERNELS = [
    (f"{file.stem}.{node.name}", node)
    for file in sorted(FOLDER.glob("*.py"))
    for node in ast.parse(file.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(each) for each in node.decorator_list)
]
LOOP = "tl.program_id(0)"


def broken(kernel: ast.FunctionDef) -> list[str]:
    """The rules that a kernel breaks."""
    said = []
    calls = [ast.unparse(node.func) for node in ast.walk(kernel) if isinstance(node, ast.Call)]
    if any(".atomic_" in call for call in calls):
        said.append("atomic")
    if any(isinstance(node, ast.Return) and node is not kernel.body[-1] for node in ast.walk(kernel)):
        said.append("early return")
    ranges = [ast.unparse(node.iter) for node in ast.walk(kernel) if isinstance(node, ast.For)]
    looped = [each for each in ranges if each.startswith(f"range({LOOP}") and each.endswith("tl.num_programs(0))")]
    if sum("tl.program_id" in call for call in calls) != len(looped):
        said.append("program_id outside a loop over the grid")
    return said


@pytest.mark.parametrize(("name", "kernel"), KERNELS, ids=[name for name, _ in KERNELS])
def test_kernels_keep_the_rules(name: str, kernel: ast.FunctionDef) -> None:
    assert broken(kernel) == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("def kernel(x):\n    i = tl.program_id(0)\n    tl.store(x + i, 0)", "program_id outside a loop over the grid"),
        ("def kernel(x):\n    if x:\n        return\n    tl.store(x, 0)", "early return"),
        ("def kernel(x):\n    tl.atomic_add(x, 1)", "atomic"),
    ],
)
def test_a_planted_breach_is_found(source: str, rule: str) -> None:
    (kernel,) = ast.parse(source).body
    assert isinstance(kernel, ast.FunctionDef)
    assert broken(kernel) == [rule]

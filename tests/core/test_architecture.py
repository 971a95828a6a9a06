"""The folders are the architecture: dependencies point one way, between hal's modules and between the distributions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400

# From the ground up. A module or package imports what stands in a layer below its own, and itself.
LAYERS = (
    ("errors", "streams", "host"),
    ("derived", "indexing"),
    ("environment", "signature", "constraints", "batch", "formats", "rope", "lock", "distributed"),
    ("contract", "kernel", "layouts", "dispatched", "policy"),
    ("cache", "ops", "target"),
    ("hookspecs", "reference"),
    ("plugins", "numerics"),
    ("evidence", "selection"),
    ("permission",),
    ("planning",),
    ("observing",),
    ("binding",),
    ("",),  # `import hal`: the public names
    ("models", "kit"),
    ("cost", "feasibility", "conformance"),
    ("bench", "diagnosis"),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}

# In a function, on demand: what only a set variable, a broken installation or a finished run needs.
LATE = {("observing", "diagnosis")}

DISTRIBUTIONS = {
    "hal_cpu": "backends/cpu",
    "hal_triton": "backends/triton",
    "hal_cuda": "backends/cuda",
    "hal_plain": "backends/plain",
    "hal_ascend": "backends/ascend",
    "hal_mlu": "backends/mlu",
    "hal_jax": "backends/jax",
    "hal_emulators": "emulators",
}


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; `from hal import x` imports hal.x where that is a module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            for name in node.names:
                inner = ROOT.joinpath(*(node.module or "").split("."), name.name)
                whole = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{name.name}" if whole else node.module or ""


def sources(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "build" not in path.parts]


def arrows() -> Iterator[tuple[str, str, Path]]:
    """Which part of hal imports which, and where."""
    for file in sources("hal"):
        part = file.relative_to(ROOT / "hal").parts[0].removesuffix(".py")
        for module in imports(file):
            if module.split(".")[0] == "hal":
                other = module.partition(".")[2].split(".")[0]
                yield "" if part == "__init__" else part, other, file.relative_to(ROOT)


def test_dependencies_point_down() -> None:
    wrong = [
        f"{file}: {part or 'hal'} imports {other or 'hal'}"
        for part, other, file in arrows()
        if part != other and HEIGHT[part] <= HEIGHT[other] and (part, other) not in LATE
    ]
    assert not wrong, "\n".join(wrong)


def test_the_layers_name_what_exists() -> None:
    parts = {path.stem for path in (ROOT / "hal").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} == set(HEIGHT) - {""}


def test_the_core_knows_no_backend() -> None:
    for file in sources("hal"):
        assert not {module.split(".")[0] for module in imports(file)} & set(DISTRIBUTIONS), file


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_imports_what_it_declares(name: str) -> None:
    """A backend sees the core and the kits it depends on; no vendor's backend sees another's."""
    folder = ROOT / DISTRIBUTIONS[name]
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    words = [
        *project.get("dependencies", ()),
        *(d for ds in project.get("optional-dependencies", {}).values() for d in ds),
    ]
    declared = {word.split(">")[0].split("=")[0].split("[")[0].strip().replace("-", "_") for word in words}
    own = {module.split(".")[0] for file in sources(f"{DISTRIBUTIONS[name]}/{name}") for module in imports(file)}
    seen = {module for module in own if module in DISTRIBUTIONS} - {name}
    assert seen <= declared, f"{name} imports {seen - declared}"
    assert seen <= {"hal_plain", "hal_triton", "hal_emulators"}, f"{name} imports a vendor's backend: {seen}"


def test_every_distribution_is_known() -> None:
    found = {path.parent.name for path in ROOT.glob("backends/*/hal_*/__init__.py")}
    assert found | {"hal_emulators"} == set(DISTRIBUTIONS)


def test_files_are_short() -> None:
    folders = ("hal", "backends", "emulators", "tests", "tools", "examples")
    long = {str(file.relative_to(ROOT)): n for d in folders for file in sources(d) if (n := lines(file)) > LONGEST}
    assert not long, long


def lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_the_standard_library_is_not_shadowed() -> None:
    """A module called as one of Python's own makes tracebacks and imports ambiguous in a vendor's folder."""
    shadowed = [file for file in sources("hal") if file.parent.name == "hal" and file.stem in sys.stdlib_module_names]
    assert not shadowed

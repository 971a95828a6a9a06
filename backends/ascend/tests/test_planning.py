"""What needs no torch_npu: declarations, plans, and what `hal doctor` says of an installation that does not work."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hal_ascend import target
from hal_ascend.kernels import kernels

import hal
from hal import plugins
from hal.cli.backends import State, states
from hal.errors import NoDevice
from hal.target import described

CHIPS = ("a2", "a3", "a5")


def ids(chip: str) -> set[str]:
    found = next(each for each in described() if each.name == f"ascend:{chip}")
    return {kernel.id for kernel in kernels(found)}


def test_importing_and_declaring_loads_no_torch() -> None:
    code = (
        "import sys, hal_ascend.plugin as p; from hal.target import described\n"
        "[p.hal_kernels(target) for target in described() if target.backend == 'ascend']\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_chips_differ_as_their_matrix_units_do() -> None:
    assert {"ascend.matmul.mx", "ascend.experts.mx"} <= ids("a5") - ids("a3")
    assert "ascend.compress" in ids("a3") - ids("a2")  # vllm-ascend's compressor does not run on A2
    assert {"ascend.matmul.int8", "ascend.attend", "ascend.select"} <= ids("a2") & ids("a3") & ids("a5")
    plain = {name for name in ids("310p") if name.endswith(".torch")}
    assert plain == ids("310p")
    assert {name.removesuffix(".torch").split(".")[1] for name in plain} >= {"attend", "select", "experts", "matmul"}


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("model", ["deepseek-v4-pro", "deepseek-v4-flash"])
def test_every_call_of_the_published_models_is_planned(model: str, chip: str) -> None:
    command = [sys.executable, "-m", "hal", "plan", model, "--on", f"ascend:{chip}", "--context", "1048576"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "operator calls is served" in done.stdout, done.stdout + done.stderr


def test_flash_on_the_950_is_served_by_vendor_operators() -> None:
    call = hal.Call(
        "attn.attend",
        sizes={"heads": 64, "head_dim": 512, "top_k": 512},
        dtypes={"q": "bfloat16"},
        layouts={"window": "v4_640", "compressed": "v4_640", "rows": "selected", "lse": "none"},
        attributes={"scale": 512**-0.5, "window_size": 128, "ratio": 4},
    )
    where = next(each for each in described() if each.name == "ascend:a5")
    with hal.use(allow="unverified"):
        assert hal.plan([call], target=where).choices[0].kernels[0].id == "ascend.attend"


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Pretend that torch_npu imports and finds `soc`; None finds no chip."""
    device = SimpleNamespace(soc=None)
    module = ModuleType("torch_npu")
    module.__spec__ = ModuleSpec("torch_npu", None)
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    words = {"is_available": lambda: device.soc is not None, "get_device_name": lambda index: device.soc}
    monkeypatch.setattr(torch, "npu", SimpleNamespace(**words), raising=False)
    return device


def seen() -> State:
    plugins.load.cache_clear()
    return next(state for state in states() if state.name == "ascend")


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "find_spec", lambda name: None)
    assert (seen().state, seen().why) == ("no device", "")


def test_no_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        if name == "torch_npu":
            raise ImportError("libhccl.so: cannot open shared object file: No such file or directory")
        return torch

    monkeypatch.setattr(target, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(target, "import_module", broken)
    found = seen()
    assert found.state == "NoDevice"
    assert "libhccl.so" in found.why
    assert "set_env.sh" in found.why


def test_torch_does_not_import_because_of_torch_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError("Failed to load the backend extension: torch_npu")

    monkeypatch.setattr(target, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(target, "import_module", broken)
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in seen().why


def test_no_chip_and_unknown_and_known_ones(npu: SimpleNamespace) -> None:
    assert target.chips_here() == []
    npu.soc = "Ascend310B4"
    with pytest.raises(NoDevice, match="Ascend310B4"):
        target.chips_here()
    for npu.soc, name in (("Ascend910B3", "a2"), ("Ascend910_9391", "a3"), ("Ascend950PR_9599", "a5")):
        assert [each.name for each in target.chips_here()] == [f"ascend:{name}"]

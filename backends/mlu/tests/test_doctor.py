"""What `hal doctor` says of vendor packages that are missing, old, or do not fit; each says the one thing to do."""

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hal_emulators.mlu.ops import VERSIONS
from hal_mlu import target, tmo

from hal import plugins
from hal.cli.backends import State, states
from hal.errors import NoDevice

Install = Callable[..., None]


def module(name: str, **words: object) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__dict__.update(words)
    return made


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that a card and vendor packages are here."""

    def install(card: str | None = "MLU590-M9", operators: str | None = "1.12.1", fallback: str = "OFF") -> None:
        def name(index: int) -> str:
            return card or ""

        device = SimpleNamespace(is_available=lambda: card is not None, get_device_name=name)
        monkeypatch.setitem(__import__("sys").modules, "torch_mlu", module("torch_mlu"))
        words = None if operators is None else module("torch_mlu_ops", **VERSIONS[operators], __version__=operators)
        monkeypatch.setitem(__import__("sys").modules, "torch_mlu_ops", words)
        monkeypatch.setattr(torch, "mlu", device, raising=False)
        monkeypatch.setenv("ENABLE_FALLBACK_TO_CPU", fallback)
        tmo.operator.cache_clear()
        tmo._parameters.cache_clear()

    return install


def seen() -> State:
    plugins.load.cache_clear()
    return next(state for state in states() if state.name == "mlu")


def test_without_torch_mlu_there_is_no_device() -> None:
    assert (seen().state, seen().why) == ("no device", "")


def test_a_good_installation_needs_no_advice(install: Install) -> None:
    install()
    found = seen()
    assert (found.state, found.targets, found.why) == ("ready", ("mlu:590",), "")


def test_a_driver_that_finds_no_card(install: Install) -> None:
    install(card=None)
    assert seen().state == "NoDevice"
    assert "run cnmon" in seen().why.lower()


def test_a_torch_mlu_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libcnrt.so.6: cannot open shared object file")

    monkeypatch.setitem(__import__("sys").modules, "torch_mlu", module("torch_mlu"))
    monkeypatch.setattr(target, "import_module", broken)
    with pytest.raises(NoDevice, match=r"libcnrt.*install the driver|libcnrt.*Install the driver"):
        target.cards_here()


def test_a_card_without_description(install: Install) -> None:
    install(card="MLU999")
    with pytest.raises(NoDevice, match="MLU999"):
        target.cards_here()


def test_missing_operators_package(install: Install) -> None:
    install(operators=None)
    assert "torch_mlu_ops does not import" in seen().why
    assert seen().kernels == 11


def test_old_operators_package(install: Install) -> None:
    install(operators="1.8.0")
    assert "torch_mlu_ops 1.8.0 lacks sliding_window_compress_attention, compressor_with_paged_state" in seen().why
    assert "install 1.12.1" in seen().why


def test_an_older_compressor_of_the_same_name_is_not_called(install: Install) -> None:
    install(operators="1.8.0")
    assert tmo.offered("fused_compress_single_kv")
    assert "state_ids" in tmo._parameters("fused_compress_single_kv")
    known = next(each for each in plugins.load("mlu").targets() if each.present)
    assert not {"mlu.compress", "mlu.compress_pool"} & {kernel.id for kernel in plugins.load("mlu").kernels(known)}


def test_host_fallback_is_on(install: Install) -> None:
    install(fallback="ON")
    assert "ENABLE_FALLBACK_TO_CPU=OFF" in seen().why

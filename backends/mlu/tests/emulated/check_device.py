"""The device itself: what it refuses, what it counts, and the surface of torch_mlu."""

import pytest
import torch
import torch_mlu
from hal_emulators.device import host

from hal.target import Target


def test_the_target_is_the_described_card(target: Target) -> None:
    assert (target.name, target.emulated, target.device_type) == ("mlu:590", True, "mlu")
    assert "bf16_mma" in target.features


def test_mixing_devices_is_refused() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="mlu") + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="mlu:0") + torch.ones(3, device="mlu:1")
    assert (torch.ones(3, device="mlu") + torch.tensor(1.0)).device.type == "mlu"


def test_views_share_memory_and_keep_strides() -> None:
    x = torch.arange(24, device="mlu").view(2, 3, 4)
    y = x.transpose(0, 2)[1:, ::2]
    y.zero_()
    assert y.stride() == (1, 8, 12)
    assert x[:, ::2, 1:].sum().item() == 0
    assert x.sum().item() > 0


def test_gradients_stay_on_the_device() -> None:
    x = torch.randn(4, 4, device="mlu", requires_grad=True)
    (x @ x).relu().sum().backward()
    assert x.grad is not None
    assert x.grad.device.type == "mlu"


def test_new_memory_holds_no_zeros_by_luck() -> None:
    assert torch.empty(1000, device="mlu").isnan().all().item()


def test_generators_repeat() -> None:
    torch.mlu.manual_seed(5)
    first = torch.randn(8, device="mlu")
    torch.mlu.manual_seed(5)
    assert torch.equal(first, torch.randn(8, device="mlu"))


def test_memory_is_counted_and_limited() -> None:
    before = torch.mlu.memory_allocated()
    kept = torch.empty(1 << 20, dtype=torch.uint8, device="mlu")
    assert torch.mlu.memory_allocated() - before == kept.nbytes
    torch.mlu.set_per_process_memory_fraction((before + (2 << 20)) / torch.mlu.get_device_properties().total_memory)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(4 << 20, dtype=torch.uint8, device="mlu")
    torch.mlu.set_per_process_memory_fraction(1.0)
    assert torch.empty(4 << 20, dtype=torch.uint8, device="mlu").nbytes == 4 << 20


def test_streams_and_events() -> None:
    stream = torch.mlu.Stream()
    with torch.mlu.stream(stream):
        assert torch.mlu.current_stream() == stream
    assert torch.mlu.current_stream() == torch.mlu.default_stream()
    begin, end = torch.mlu.Event(enable_timing=True), torch.mlu.Event(enable_timing=True)
    begin.record()
    end.record()
    assert begin.elapsed_time(end) >= 0
    with torch.mlu.device(1):
        assert torch.ones(1, device="mlu").device.index == 1
    assert torch.mlu.current_device() == 0


def test_host_trips_are_counted() -> None:
    host.clear()
    x = torch.ones(3, device="mlu") * 2
    assert host.trips() == {}
    x.cpu()
    x[0].item()
    assert host.trips() == {"copy to host": 1, "item": 1}


def test_missing_kernels_fall_back_or_fail() -> None:
    from hal_mlu.host import watched

    x = torch.ones(3, device="mlu")
    with host.without_kernel(["aten::cumsum"], strict=False), watched() as found:
        x.cumsum(0)
    assert found == ["aten::cumsum.out"]
    with (
        host.without_kernel(["aten::cumsum"], strict=True),
        pytest.raises(NotImplementedError, match="no kernel for the mlu"),
    ):
        x.cumsum(0)


def test_operators_are_logged() -> None:
    x = torch.ones(3, device="mlu")
    with host.log() as counts:
        x.exp()
        x.exp()
    assert counts["aten::exp.out"] == 2


def test_foreign_operators_are_refused() -> None:
    library = torch.library.Library("check_device", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")
    with pytest.raises(NotImplementedError, match=r"not implemented for the mlu|Could not run 'check_device::twice'"):
        torch.ops.check_device.twice(torch.ones(2, device="mlu"))


def test_the_surface_of_torch_mlu() -> None:
    properties = torch.mlu.get_device_properties(0)
    assert properties.cluster_count * properties.core_num_per_cluster == properties.multi_processor_count
    assert torch.mlu.get_device_capability() == (5, 0)
    assert torch.mlu.is_bf16_supported()
    assert torch_mlu.__version__
    assert torch.version.mlu is None
    assert torch.distributed.is_cncl_available()

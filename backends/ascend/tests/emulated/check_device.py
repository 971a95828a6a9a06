"""torch_npu's device on the emulated runtime; the kernels' queue is on."""

import pytest
import torch
import torch_npu
from hal_ascend.target import chips_here, watched
from torch import nn


def test_the_chip_is_found_by_its_name() -> None:
    assert [target.name for target in chips_here()] == ["ascend:a3"]


def test_autograd_matches_the_cpu() -> None:
    torch.manual_seed(0)
    here, x = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4)), torch.randn(5, 8)
    there = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4)).npu()
    there.load_state_dict(here.state_dict())
    here(x).square().sum().backward()
    there(x.npu()).square().sum().backward()
    torch.testing.assert_close(there[0].weight.grad.cpu(), here[0].weight.grad)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_fractions_and_back(dtype: torch.dtype) -> None:
    torch.npu.config.allow_internal_format = True
    x = torch.randint(-100, 100, (3, 40, 70)).to(dtype).npu()
    fractions = torch_npu.npu_format_cast(x, 29)
    assert torch_npu.get_npu_format(fractions) == 29
    assert torch.equal(torch_npu.npu_format_cast(fractions, 2).cpu(), x.cpu())


def test_memory_ends() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(70 << 30, dtype=torch.int8, device="npu")


def test_streams_and_events_order_work() -> None:
    stream, began, ended = torch.npu.Stream(), torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    began.record()
    with torch.npu.stream(stream):
        x = torch.ones(1000, device="npu") * 2
        ended.record()
    torch.npu.current_stream().wait_stream(stream)
    assert x.sum().item() == 2000
    assert began.elapsed_time(ended) >= 0


def test_devices_do_not_mix() -> None:
    with pytest.raises(RuntimeError):
        torch_npu.npu_quant_matmul(
            torch.ones(4, 32, dtype=torch.int8, device="npu:0"),
            torch.ones(32, 32, dtype=torch.int8, device="npu:1"),
            torch.ones(32, device="npu:0"),
            output_dtype=torch.bfloat16,
        )


def test_an_operator_without_a_kernel_is_refused_and_named() -> None:
    with watched() as names, pytest.raises(NotImplementedError, match="copysign"):
        torch.copysign(torch.ones(3, device="npu"), torch.ones(3, device="npu"))
    assert names == ["aten::copysign.out"]

"""One of several processes: collectives with known answers, then a mixture of experts with two experts each."""

import os

from hal_emulators.cann import start

start("a3")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from hal_ascend import routing  # noqa: E402
from hal_plain.experts import experts  # noqa: E402

from hal.distributed import TorchGroup  # noqa: E402
from hal.formats import prepare  # noqa: E402
from hal.reference.experts import ffn  # noqa: E402

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.npu.set_device(rank)
dist.init_process_group("hccl", rank=rank, world_size=size)


def collectives() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.full((3,), rank + 1.0, device="npu", dtype=dtype)
        dist.all_reduce(x)
        assert x.tolist() == [size * (size + 1) / 2] * 3
    gathered = torch.empty(2 * size, device="npu")
    dist.all_gather_into_tensor(gathered, torch.full((2,), float(rank), device="npu"))
    assert gathered.tolist() == [float(each) for each in range(size) for _ in range(2)]
    scattered = torch.empty(2, device="npu")
    dist.reduce_scatter_tensor(scattered, torch.arange(2.0 * size).npu())
    assert scattered.tolist() == [size * 2.0 * rank, size * (2.0 * rank + 1)]
    sent = torch.cat([torch.full((to, 2), float(10 * rank + to)) for to in range(size)]).npu()  # `to` rows each
    got = torch.empty(rank * size, 2, device="npu")
    dist.all_to_all_single(got, sent, [rank] * size, list(range(size)))
    assert got[:, 0].tolist() == [float(10 * each + rank) for each in range(size) for _ in range(rank)]
    if rank == 0:
        dist.send(torch.ones(5, device="npu"), size - 1)
    elif rank == size - 1:
        x = torch.zeros(5, device="npu")
        dist.recv(x, 0)
        assert x.sum().item() == 5
    dist.barrier()


def spread_experts() -> None:
    """What every process computes with a quarter of the experts is what one computes with all."""
    all_experts, tokens, hidden, inter = 2 * size, 5 + rank, 64, 32
    draw = torch.Generator().manual_seed(0)
    w13 = prepare(torch.randn(all_experts, 2 * inter, hidden, generator=draw) / 8, "bf16")
    w2 = prepare(torch.randn(all_experts, hidden, inter, generator=draw) / 6, "bf16")
    draw.manual_seed(rank + 1)
    x = torch.randn(tokens, hidden, generator=draw).bfloat16()
    ids = torch.rand(tokens, all_experts, generator=draw).topk(3).indices.int()
    weights = torch.rand(tokens, 3, generator=draw)
    want = ffn(x, ids, weights, w13, w2, None, None, experts=all_experts, clamp=10.0, activation="none")
    mine = slice(2 * rank, 2 * rank + 2)
    w13, w2 = (prepare(weight.codes[mine].float(), "bf16").to("npu") for weight in (w13, w2))
    sent = routing.dispatch(x.npu(), ids.npu(), weights.npu(), TorchGroup(), experts=all_experts, activation="none")
    rows = experts(sent, w13, w2, clamp=10.0, activation="none")
    y = routing.combine(rows, sent, None).cpu()
    torch.testing.assert_close(y.float(), want.float(), atol=0.05, rtol=0.05)


collectives()
spread_experts()
dist.destroy_process_group()

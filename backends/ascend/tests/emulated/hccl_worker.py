"""One of several processes: collectives with known answers, then mixtures of experts with a share of them each."""

import os
import sys
from collections.abc import Callable

from hal_emulators.cann import start

CHIP = sys.argv[1]
start(CHIP)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch_npu  # noqa: E402
from hal_ascend import cube, exchange, fused, routing  # noqa: E402
from hal_ascend.kernels import kernels  # noqa: E402
from hal_emulators.cann.calls import log  # noqa: E402
from hal_plain.experts import experts  # noqa: E402
from torch import Tensor  # noqa: E402

import hal  # noqa: E402
from hal.conformance.samples.experts import ffn_sample  # noqa: E402
from hal.distributed import TorchGroup  # noqa: E402
from hal.formats import PackedWeight, prepare  # noqa: E402
from hal.numerics.contracts import expect  # noqa: E402
from hal.numerics.precision import Precision  # noqa: E402
from hal.numerics.verdict import Verdict  # noqa: E402
from hal.policy import Policy  # noqa: E402
from hal.reference.experts import ffn  # noqa: E402
from hal.selection import target_of  # noqa: E402

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


def local(weight: PackedWeight) -> PackedWeight:
    count = weight.shape[0] // size
    mine = slice(rank * count, (rank + 1) * count)
    return PackedWeight(weight.codes[mine], weight.scales[mine], weight.scheme, (count, *weight.shape[1:])).to("npu")


def results(ffn: Callable[..., Tensor], scheme: str, activation: str) -> list[Callable[[Precision | None], Verdict]]:
    """Other tokens in every process, none in the last: each result is judged as if its process had all experts."""
    samples = [
        ffn_sample(19, scheme, activation, "spread"),
        ffn_sample(19, scheme, activation, "holes", residual=False),
        ffn_sample(3, scheme, activation, "crowded"),
    ]
    judges, group = [], TorchGroup(dist.group.WORLD)
    for sample in samples:
        x, ids, weights, w13, w2, residual, _ = sample.arguments()
        own = [
            None if each is None else each[rank :: size - 1] if rank < size - 1 else each[:0]
            for each in (x, ids, weights, residual)
        ]
        *tokens, rest = [None if each is None else each.npu() for each in own]
        y = ffn(*tokens, local(w13), local(w2), rest, group, **sample.attributes).cpu()
        arguments, words = (*own[:3], w13, w2, own[3], None), sample.attributes
        judges.append(lambda precision, y=y, a=arguments, w=words: expect("moe.ffn", a, w, precision).judge(y, a))
    return judges


def fused_exchange() -> None:
    exchange.MOST_TOKENS = 4  # several waves
    scheme, activation = ("w8a8_int8", "int8_token") if CHIP == "a3" else ("mxfp4", "e4m3_32")
    with log() as called:
        judges = results(exchange.ffn, scheme, activation)
    assert {"aclnnMoeDistributeDispatchV4", "aclnnMoeDistributeCombineV4"} <= set(called)
    for judge in judges:
        assert judge(None).passed, str(judge(None))


def one_operator() -> None:
    """What it computes is inside what its kernel declares, and outside what the contract promises."""
    with hal.use(backend="ascend:a3@emulated"):
        every = kernels(target_of(Policy.current()))
    (kernel,) = (each for each in every if each.id == "ascend.ffn.fused")
    assert kernel.load() is fused.ffn
    judges = results(fused.ffn, "w8a8_int8", "int8_token")
    for judge in judges:
        verdict = judge(Precision.of(kernel))
        assert verdict.passed, str(verdict)
    assert rank == size - 1 or not all(judge(None).passed for judge in judges)


def refused_experts() -> None:
    """What `dispatch_ffn_combine` cannot serve fails in every process."""
    experts, hidden, inter, slots = 2, 256, 128, 2
    weights = [
        [cube.fractions(torch.ones(experts, *shape, dtype=torch.int8, device="npu"))]
        for shape in ((2 * inter, hidden), (hidden, inter))
    ]
    scales = [[torch.ones(experts, width, device="npu").view(torch.int32).long()] for width in (2 * inter, hidden)]
    x = torch.ones(4, hidden, dtype=torch.bfloat16, device="npu")
    ids = torch.full((4, slots), size * experts - 1, dtype=torch.int32, device="npu")
    right = {
        "x": x,
        "weight1": weights[0],
        "weight2": weights[1],
        "expert_idx": ids,
        "scale1": scales[0],
        "scale2": scales[1],
        "bias1": [],
        "bias2": [],
        "probs": torch.ones(4, slots, device="npu"),
        "group": exchange.communicator(TorchGroup(dist.group.WORLD)),
        "max_output_size": size * ids.numel(),
        "out": torch.empty_like(x),
        "expert_token_nums": torch.empty(1, experts, dtype=torch.int32, device="npu"),
        "swiglu_limit": 10.0,
    }
    operator = torch.ops._C_ascend.dispatch_ffn_combine
    _, came = operator(**right)
    assert came.flatten().tolist() == [0, size * ids.numel() if rank == size - 1 else 0]
    unlike = 4 + rank
    wrong = {
        "weights in rows": {"weight1": [torch.ones(experts, hidden, 2 * inter, dtype=torch.int8, device="npu")]},
        "scales of float32": {"scale1": [torch.ones(experts, 2 * inter, device="npu")]},
        "probs of bfloat16": {"probs": right["probs"].bfloat16()},
        "an unused slot": {"expert_idx": torch.full_like(ids, -1)},
        "an expert behind the place of the masked": {"expert_idx": torch.full_like(ids, size * experts + 1)},
        "fewer rows than come": {"max_output_size": size * ids.numel() - 1},
        "other numbers of tokens": {
            "x": x.new_ones(unlike, hidden),
            "expert_idx": ids.new_zeros(unlike, slots),
            "probs": torch.ones(unlike, slots, device="npu"),
            "out": x.new_empty(unlike, hidden),
        },
    }
    for what, others in wrong.items():
        refused = False
        try:
            operator(**{**right, **others})
        except RuntimeError:
            refused = True
        assert refused or (what == "fewer rows than come" and rank != size - 1), what


def refused_exchanges() -> None:
    """What CANN's documentation forbids does not compute: every process finds out, none waits for another."""
    words = {**exchange._of(TorchGroup(dist.group.WORLD)), "moe_expert_num": 2 * size}
    wrong = {
        "other numbers of tokens": (4 + rank, 0, {}),
        "an unused slot that is not masked": (4, -1, {}),
        "an expert beyond the last": (4, 2 * size, {}),
        "more processes than there are": (4, 0, {"ep_world_size": 2 * size}),
        "too many tokens": (513, 0, {}),
    }
    for what, (tokens, expert, others) in wrong.items():
        x = torch.ones(tokens, 1024, dtype=torch.bfloat16, device="npu")
        ids = torch.full((tokens, 2), expert, dtype=torch.int32, device="npu")
        try:
            torch_npu.npu_moe_distribute_dispatch_v2(x, ids, **{**words, **others})
        except RuntimeError:
            continue
        raise AssertionError(what)


collectives()
spread_experts()
refused_exchanges()
fused_exchange()
if CHIP == "a3":
    one_operator()
    refused_experts()
dist.destroy_process_group()

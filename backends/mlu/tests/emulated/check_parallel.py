"""Four processes over `cncl`: experts spread over them give what one process gives; FP8 does not go on the wire."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

PROCESSES, EXPERTS, HIDDEN, INTER, TOKENS, TOP_K = 4, 8, 128, 64, 12, 3

KINDS = ("bf16 none", "mxfp4 e4m3_128", "w8a8_int8 int8_token")


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(PROCESSES * TOKENS, HIDDEN, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(len(x))]).int()
    ids[5, 1] = -1
    weights = torch.rand(len(x), TOP_K, generator=generator)
    w13 = torch.randn(EXPERTS, 2 * INTER, HIDDEN, generator=generator) * HIDDEN**-0.5
    w2 = torch.randn(EXPERTS, HIDDEN, INTER, generator=generator) * INTER**-0.5
    return x, ids, weights, w13, w2


def ffn(scheme: str, activation: str, local: slice, experts: slice, group: Any) -> torch.Tensor:
    import hal
    from hal.formats import prepare

    x, ids, weights, w13, w2 = inputs()
    call = hal.Call(
        "moe.ffn",
        sizes={"hidden": HIDDEN, "top_k": TOP_K, "inter": INTER},
        dtypes={"x": "bfloat16"},
        layouts={"w13": scheme, "w2": scheme},
        attributes={"experts": EXPERTS, "clamp": 10.0, "activation": activation},
    )
    with hal.use(backend="mlu@emulated"):
        bound = hal.bind(call)
    packed = [prepare(weight[experts], scheme).to("mlu") for weight in (w13, w2)]
    return bound(*(each[local].to("mlu") for each in (x, ids, weights)), *packed, None, group).cpu()


def worker(rank: int, folder: Path) -> None:
    """What one process does; `folder` holds the wanted results and the meeting point."""
    from hal_emulators.mlu import start

    from hal.distributed import TorchGroup

    start("")
    dist.init_process_group("cncl", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    wanted = torch.load(folder / "wanted.pt")
    local, per = slice(rank * TOKENS, (rank + 1) * TOKENS), EXPERTS // PROCESSES
    for kind, whole in wanted.items():
        got = ffn(*kind.split(), local, slice(rank * per, (rank + 1) * per), TorchGroup())
        torch.testing.assert_close(got, whole[local], rtol=0, atol=0)
    total = torch.full((2,), float(rank), dtype=torch.bfloat16, device="mlu")
    dist.all_reduce(total)
    assert total.tolist() == [6.0, 6.0]
    gathered = [torch.empty(1, dtype=torch.int32, device="mlu") for _ in range(PROCESSES)]
    dist.all_gather(gathered, torch.tensor([rank], dtype=torch.int32, device="mlu"))
    assert [int(each) for each in gathered] == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="cncl has no"):
        dist.all_reduce(torch.zeros(4, device="mlu").to(torch.float8_e4m3fn))
    with pytest.raises(RuntimeError, match="device type cpu"):
        dist.all_reduce(torch.zeros(4))
    dist.barrier()
    dist.destroy_process_group()


def test_experts_over_four_processes(tmp_path: Path) -> None:
    everything = slice(None)
    wanted = {kind: ffn(*kind.split(), everything, everything, None) for kind in KINDS}
    torch.save(wanted, tmp_path / "wanted.pt")
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(PROCESSES)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [0] * PROCESSES, "".join(error for error, _ in ended)[-4000:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(int(sys.argv[1]), Path(sys.argv[2]))

"""The process group `cncl` of the device `mlu`, over gloo and without copies.

Types follow torch_mlu's `process_group_cncl.cpp`: no FP8, FP4 or E8M0; tensors must be contiguous and on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hal_emulators.device.host import as_host

__all__ = ["register"]

DTYPES = (
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
)


def register() -> None:
    """Make `init_process_group("cncl")` work. Once per process."""
    if not dist.is_available() or "cncl" in dist.Backend.backend_list:
        return
    dist.Backend.register_backend("cncl", _create, devices=["mlu"])
    dist.is_cncl_available = lambda: True


def _create(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    return _group_class()(store, rank, size, timeout)


def _hosts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """CPU tensors over the same bytes, of tensors that cncl takes."""
    for tensor in tensors:
        if tensor.device.type != "mlu":
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type}: cncl serves mlu")
        if tensor.dtype not in DTYPES:
            raise RuntimeError(f"cncl has no {tensor.dtype}: view the tensor as uint8")
        if not tensor.is_contiguous():
            raise ValueError("Tensors must be contiguous")
    return [as_host(tensor.detach()) for tensor in tensors]


def _group_class() -> type:
    from torch._C._distributed_c10d import ProcessGroup, ProcessGroupGloo

    class ProcessGroupCNCL(ProcessGroup):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            super().__init__(rank, size)
            self.gloo = ProcessGroupGloo(store, rank, size, timeout=timeout)

        def getBackendName(self) -> str:
            return "cncl"

        @property
        def group_name(self) -> str:
            return dist.distributed_c10d._world.pg_names[self]

        pg_name = group_name

        @property
        def _device_types(self) -> list[torch.device]:
            return [torch.device("mlu")]

        def _start_coalescing(self, device: torch.device) -> None:
            pass

        def _end_coalescing(self, device: torch.device) -> Any:
            return self.barrier()

        def _set_sequence_number_for_group(self) -> None:
            pass

        def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
            return self.gloo.allreduce(_hosts(tensors), opts or dist.AllreduceOptions())

        def allreduce_coalesced(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
            each = dist.AllreduceOptions()
            each.reduceOp = opts.reduceOp if opts is not None else dist.ReduceOp.SUM
            return _last([self.gloo.allreduce(_hosts([tensor]), each) for tensor in tensors])

        def broadcast(self, tensors: Sequence[Tensor], opts: Any) -> Any:
            return self.gloo.broadcast(_hosts(tensors), opts)

        def reduce(self, tensors: Sequence[Tensor], opts: Any) -> Any:
            return self.gloo.reduce(_hosts(tensors), opts)

        def allgather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None) -> Any:
            return self.gloo.allgather([_hosts(output) for output in outputs], _hosts(inputs))

        def _allgather_base(self, output: Tensor, tensor: Tensor, opts: Any = None) -> Any:
            out, own = _hosts([output, tensor])
            return self.gloo.allgather([list(out.flatten().chunk(self.size()))], [own.flatten()])

        all_gather_single = _allgather_base

        def allgather_into_tensor_coalesced(
            self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
        ) -> Any:
            return _last([self._allgather_base(*pair) for pair in zip(outputs, inputs, strict=True)])

        def gather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any) -> Any:
            return self.gloo.gather([_hosts(output) for output in outputs], _hosts(inputs), opts)

        def scatter(self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any) -> Any:
            return self.gloo.scatter(_hosts(outputs), [_hosts(each) for each in inputs], opts)

        def _reduce_scatter_base(self, output: Tensor, tensor: Tensor, opts: Any) -> Any:
            out, own = _hosts([output, tensor])
            total = own.flatten().clone()
            sums = dist.AllreduceOptions()
            average = opts.reduceOp == dist.ReduceOp.AVG
            sums.reduceOp = dist.ReduceOp.SUM if average else opts.reduceOp
            work = self.gloo.allreduce([total], sums)
            work.wait()
            part = total.chunk(self.size())[self.rank()]
            out.view(-1).copy_(part / self.size() if average else part)
            return work

        reduce_scatter_single = _reduce_scatter_base

        def reduce_scatter(self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any) -> Any:
            return self._reduce_scatter_base(outputs[0], torch.cat([each.flatten() for each in inputs[0]]), opts)

        def alltoall_base(
            self,
            output: Tensor,
            tensor: Tensor,
            output_split: Sequence[int],
            input_split: Sequence[int],
            opts: Any = None,
        ) -> Any:
            out, own = _hosts([output, tensor])
            words = opts or dist.AllToAllOptions()
            return self.gloo.alltoall_base(out, own, list(output_split), list(input_split), words)

        all_to_all_single = alltoall_base

        def alltoall(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None) -> Any:
            outs, owns = _hosts(outputs), _hosts(inputs)
            lengths = [each.numel() for each in outs]
            got = torch.empty(sum(lengths), dtype=owns[0].dtype)
            sent = torch.cat([each.flatten() for each in owns])
            work = self.gloo.alltoall_base(got, sent, lengths, [each.numel() for each in owns], dist.AllToAllOptions())
            work.wait()
            for out, part in zip(outs, got.split(lengths), strict=True):
                out.view(-1).copy_(part)
            return work

        def send(self, tensors: Sequence[Tensor], to: int, tag: int = 0) -> Any:
            return self.gloo.send(_hosts(tensors), to, tag)

        def recv(self, tensors: Sequence[Tensor], source: int, tag: int = 0) -> Any:
            return self.gloo.recv(_hosts(tensors), source, tag)

        def barrier(self, opts: Any = None) -> Any:
            return self.gloo.barrier(opts or dist.BarrierOptions())

    return ProcessGroupCNCL


def _last(works: list[Any]) -> Any:
    """The last of several collectives, after the others are done."""
    for work in works:
        work.wait()
    return works[-1] if works else None

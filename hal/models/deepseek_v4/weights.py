"""From checkpoint tensors to what the model computes with: plain tensors in its dtype, or packed quantised weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hal.formats import PackedWeight, prepare
from hal.models.deepseek_v4.calls import Numerics
from hal.models.deepseek_v4.config import DeepseekV4Config
from hal.models.deepseek_v4.tensors import TensorSpec, tensors

_SCHEMES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bf16"}


def plain_scheme(dtype: torch.dtype) -> str:
    """The weight scheme that stores values of `dtype` as they are."""
    return _SCHEMES[dtype]


class Weights:
    """Official tensor names -> weights of one model.

    Args:
        tensors: every tensor by official name, quantised ones as codes with a `.scale` beside them; read one at a time.
        config: the model's configuration.
        numerics: decides which weights stay packed, and the dtype of the others.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: DeepseekV4Config,
        numerics: Numerics,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tensors, self.config, self.numerics, self.device = tensors, config, numerics, torch.device(device)
        self.dtype: torch.dtype = getattr(torch, numerics.dtype)

    def plain(self, name: str) -> Tensor:
        """An unquantised tensor in the model's dtype."""
        return self.tensors[name].to(self.device, self.dtype)

    def full(self, name: str) -> Tensor:
        """A tensor that is kept in float32 (float64 in a float64 model)."""
        return self.tensors[name].to(self.device, torch.float64 if self.dtype == torch.float64 else torch.float32)

    def ids(self, name: str) -> Tensor:
        """A table of expert ids, int32."""
        return self.tensors[name].to(self.device, torch.int32)

    def linear(self, name: str) -> Tensor | PackedWeight:
        """Weight `name` (without `.weight`), packed if the model multiplies packed weights."""
        if self.numerics.packed:
            return self._packed(name, self.numerics.linear)
        return self.dense(name)

    def dense(self, name: str) -> Tensor:
        """Weight `name` in the model's dtype, dequantised if need be."""
        stored = self._stored(name)
        return stored.dequantize(self.dtype) if isinstance(stored, PackedWeight) else stored.to(self.dtype)

    def experts(self, prefix: str) -> tuple[Tensor | PackedWeight, Tensor | PackedWeight]:
        """All routed experts: `w13 [experts, 2*inter, hidden]`, gate rows first, and `w2 [experts, hidden, inter]`."""
        count = self.config.n_routed_experts
        gates_and_ups = [[f"{prefix}{expert}.w1", f"{prefix}{expert}.w3"] for expert in range(count)]
        return self._stack(gates_and_ups), self._stack([[f"{prefix}{expert}.w2"] for expert in range(count)])

    def _stack(self, names: list[list[str]]) -> Tensor | PackedWeight:
        """One matrix per expert, each from the rows of the named ones, filled in place: no second copy of a layer."""
        if not self.numerics.packed:
            return _filled(len(names), ([torch.cat([self.dense(name) for name in group])] for group in names))[0]
        scheme = self.numerics.experts
        packed = (PackedWeight.joined([self._packed(name, scheme) for name in group]) for group in names)
        codes, scales = _filled(len(names), ([each.codes, _scales(each)] for each in packed))
        first = PackedWeight.joined([self._packed(name, scheme) for name in names[0]])
        return PackedWeight(codes, scales, scheme, (len(names), *first.shape), first.lossy)

    def _packed(self, name: str, scheme: str) -> PackedWeight:
        """A weight as the checkpoint stores it, or converted to the scheme that the numerics ask for."""
        stored = self._stored(name)
        return prepare(stored, scheme)

    def _stored(self, name: str) -> Tensor | PackedWeight:
        codes = self.tensors[f"{name}.weight"].to(self.device)
        if codes.dtype == torch.float8_e4m3fn:
            return PackedWeight(
                codes, self.tensors[f"{name}.scale"].to(self.device), "fp8_block128", tuple(codes.shape)
            )
        if codes.dtype in (torch.int8, torch.uint8):
            shape = (codes.shape[0], codes.shape[1] * 2)
            return PackedWeight(codes.view(torch.uint8), self.tensors[f"{name}.scale"].to(self.device), "mxfp4", shape)
        return codes


def _scales(weight: PackedWeight) -> Tensor:
    assert weight.scales is not None
    return weight.scales


def _filled(count: int, items: Iterator[list[Tensor]]) -> list[Tensor]:
    """Stacks of `count` items, one stack for each of an item's tensors, written as the items come."""
    stacks: list[Tensor] = []
    for index, item in enumerate(items):
        if not stacks:
            stacks = [tensor.new_empty((count, *tensor.shape)) for tensor in item]
        for stack, tensor in zip(stacks, item, strict=True):
            stack[index] = tensor
    return stacks


class RandomTensors(Mapping[str, Tensor]):
    """Random weights by official name, made when asked for: the same for the same seed, whatever the order of asking.

    Matrices are normal with standard deviation 0.02, norms and mHC scales are one, biases zero, hash tables uniform.
    """

    def __init__(self, config: DeepseekV4Config, seed: int) -> None:
        self.config, self.seed = config, seed
        self.specs: dict[str, tuple[int, TensorSpec]] = {
            spec.name: (index, spec) for index, spec in enumerate(tensors(config))
        }

    def __getitem__(self, name: str) -> Tensor:
        index, spec = self.specs[name]
        generator = torch.Generator().manual_seed((self.seed << 24) + index)
        if spec.kind == "ids":
            experts, (vocab, top_k) = self.config.n_routed_experts, spec.shape
            return torch.rand(vocab, experts, generator=generator).topk(top_k).indices.int()
        if name.endswith(("norm.weight", "_scale")):
            return torch.ones(spec.shape)
        if name.endswith(("_base", "bias", "ape", "attn_sink")):
            return torch.zeros(spec.shape)
        return torch.randn(spec.shape, generator=generator) * 0.02

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

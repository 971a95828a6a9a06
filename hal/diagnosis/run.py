"""One run of a model on given tokens, in a process of its own: its hidden states after every layer, and its logits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hal.conformance.inside import Asked
from hal.conformance.worker import Worker
from hal.errors import Broken, HalError, ParityError

if TYPE_CHECKING:
    from torch import Tensor

    from hal.models.deepseek_v4 import DeepseekV4, Numerics

__all__ = ["Blame", "Inside", "Job", "Ran", "Runner"]

PLAIN = {"rows_f32": "rows_f64", "rows_bf16": "rows_f64", "float32": "float64", "bf16": "float64"}


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        checkpoint: a folder.
        pieces: the tokens, as they are fed: some prefilled in chunks, the last ones one by one.
        dtype: of activations; None: what the backend's chip has.
        numerics: of the run; None: what the backend's chip has.
        wide: compute in float64; what is quantised stays quantised.
        noise: standard deviation of the relative error that is put on every layer's input, from `seed`.
    """

    checkpoint: Path
    pieces: tuple[tuple[int, ...], ...]
    dtype: str | None = None
    numerics: Numerics | None = None
    wide: bool = False
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Ran:
    """A run that went through.

    Attributes:
        layers: float32 or float64 [tokens, streams * hidden] after every layer, on the host.
        logits: float32 [tokens, vocab].
    """

    target: str
    emulated: bool
    numerics: Numerics
    kernels: dict[str, str] = field(repr=False)
    kinds: tuple[str, ...]
    layers: tuple[Tensor, ...] = field(repr=False)
    logits: Tensor = field(repr=False)


@dataclass(frozen=True)
class Blame:
    """The first operator call of a run that its judge refuses.

    Attributes:
        layer: in which it happened; None before the first one.
        token: position of the first token of the step.
        text: operator, kernel, number of the call and what is wrong.
        use: of the model.
    """

    layer: int | None
    token: int
    use: str
    text: str


class Runner(Worker):
    """A backend as in HAL_BACKEND that runs models."""

    inside = "hal.diagnosis.run:Inside"
    kept = ("HAL_ALLOW", "HAL_OPS")

    def run(self, job: Job) -> Ran:  # type: ignore[override]
        """The hidden states of a job.

        Raises:
            HalError: it cannot be run.
        """
        found: Ran = self._answered("run", job)
        return found

    def check(self, job: Job) -> Blame | None:
        """The first call that the reference in float64 refutes on the run's own arguments, or that raises."""
        found: Blame | None = self._answered("check", job)
        return found

    def _answered(self, word: str, job: Job) -> Any:
        answer = self.ask((word, job))
        if isinstance(answer, str):
            raise Broken(
                f"running the model {answer}", where=self.backend, fix="see whether `hal verify` works with it"
            )
        if isinstance(answer, HalError):
            raise answer
        return answer


class Inside:
    """Answers in the backend's process."""

    def __init__(self, asked: Asked) -> None:
        self.backend = asked.backend

    def answer(self, word: str, job: Job) -> Ran | Blame | None:
        """`run` or `check`."""
        return self._check(job) if word == "check" else self._run(job)

    def upset(self, word: str, job: Job, answer: Any) -> bool:
        """A process that has failed is not asked again."""
        return isinstance(answer, HalError)

    def _run(self, job: Job) -> Ran:
        import torch

        model = _model(job, self.backend)
        layers: list[list[Tensor]] = [[] for _ in model.layers]
        logits = []
        generator = torch.Generator().manual_seed(job.seed)

        def disturb(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            noise = torch.randn(arguments[0].shape, generator=generator, dtype=torch.float64)
            factor = (1 + job.noise * noise).to(arguments[0].device)
            return ((arguments[0] * factor).to(arguments[0].dtype), *arguments[1:])

        for number, block in enumerate(model.layers):
            if job.noise:
                block.register_forward_pre_hook(disturb)
            block.register_forward_hook(lambda _, __, out, number=number: layers[number].append(_host(out)))
        for streams in _steps(model, job):
            logits.append(model.head_logits(streams).cpu())
        kinds = tuple(model.config.kind(layer) for layer in range(len(model.layers)))
        kernels = {choice.call.title: choice.winner for choice in model.plan.choices}
        target = model.plan.target
        whole = tuple(torch.cat(pieces) for pieces in layers)
        return Ran(target.name, target.emulated, model.numerics, kernels, kinds, whole, torch.cat(logits))

    def _check(self, job: Job) -> Blame | None:
        at: dict[str, Any] = {"layer": None, "token": 0}
        with _checking():
            model = _model(job, self.backend)
            for number, block in enumerate(model.layers):
                block.register_forward_pre_hook(lambda _, __, number=number: at.update(layer=number))
            try:
                for _ in _steps(model, job, at):
                    at["layer"] = None
            except ParityError as error:
                return Blame(at["layer"], at["token"], error.where, error.what)
            except HalError as error:
                return Blame(at["layer"], at["token"], error.where, str(error))
        return None


@contextmanager
def _checking() -> Iterator[None]:
    """Every operator that is bound here is compared with the reference."""
    before = os.environ.get("HAL_CHECK")
    os.environ["HAL_CHECK"] = "*"
    try:
        yield
    finally:
        os.environ.pop("HAL_CHECK")
        if before is not None:
            os.environ["HAL_CHECK"] = before


def _model(job: Job, backend: str) -> DeepseekV4:
    import hal
    from hal.models.deepseek_v4 import Checkpoint, DeepseekV4
    from hal.models.deepseek_v4.calls import calls
    from hal.models.deepseek_v4.weights import Weights

    if job.numerics is None:
        return DeepseekV4.from_checkpoint(job.checkpoint, backend=backend, dtype=job.dtype)
    checkpoint = Checkpoint.open(job.checkpoint)
    checkpoint.check()
    numerics = _wide(job.numerics) if job.wide else job.numerics
    plan = hal.plan(calls(checkpoint.config, numerics), policy=hal.Policy.current(backend=backend))
    weights = Weights(checkpoint, checkpoint.config, numerics, plan.target.device_type)
    return DeepseekV4(weights, hal.bind(plan), plan)


def _wide(numerics: Numerics) -> Numerics:
    """The same in float64: what is plain is stored exactly, what is quantised as before."""
    names = ("window", "compressed", "index", "linear", "experts")
    return replace(
        numerics, dtype="float64", **{n: PLAIN.get(getattr(numerics, n), getattr(numerics, n)) for n in names}
    )


def _steps(model: DeepseekV4, job: Job, at: dict[str, Any] | None = None) -> Iterator[Tensor]:
    """Streams of every piece, one request after the other tokens of which are in the caches."""
    import torch

    from hal.batch import Batch

    total = sum(map(len, job.pieces))
    caches = model.caches(tokens=total, chunk=max(map(len, job.pieces)))
    slot, start = caches.open(), 0
    for piece in job.pieces:
        if at is not None:
            at["token"] = start
        caches.reserve([(slot, start, start + len(piece))])
        batch = Batch.build([len(piece)], [start], [slot], model.device)
        with torch.no_grad():
            yield model(torch.tensor(piece, device=model.device), batch, caches)
        start += len(piece)


def _host(streams: Tensor) -> Tensor:
    import torch

    found = streams.detach().to("cpu")
    return found.flatten(1) if found.dtype == torch.float64 else found.float().flatten(1)

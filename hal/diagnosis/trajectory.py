"""A whole model on two backends: how far hidden states are from exact ones, layer by layer, and how far they may be.

What is exact: the reference in float64 with the side's own formats (cache rows, weights and activations quantised as
that chip does it), so that only errors of computing are left. How far an honest implementation is from it: the
reference in the side's own dtype, `HONEST` times, each with other errors of size `NOISE` put on every layer's input,
which stand for the rounding inside a layer in another order: rounding flips codes and choices of a quantised model, how
often and how far they carry differs from model to model, and is measured rather than guessed. The largest of them times
`SLACK` is the bound, and never less than what sums in another order cost (`SUMS`, growing with the root of the depth).
The bound cannot see a fault that is as small as that; the judge of every single operator call of the run does.

What a side's formats cost, against the official arithmetic in float64, is told beside it: it is declared, and no error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hal.diagnosis.run import Blame, Job, Ran, Runner
from hal.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from hal.models.deepseek_v4 import Numerics

__all__ = ["Apart", "Followed", "Trajectory", "follow", "tokens_of"]

HONEST = 4
SLACK = 2.0
LIMIT = 3600.0
"""Seconds that one run of the model may take."""

NOISE = {"float64": 2.0**-50, "float32": 2.0**-21, "bfloat16": 2.0**-8, "float16": 2.0**-10}
"""Relative, standard deviation. Of 8 roundings in wide types, so that rare flips of codes are in the sample."""
SUMS = {"float64": 2.0**-47, "float32": 2.0**-18, "bfloat16": 2.0**-18, "float16": 2.0**-18}
"""Relative, of a layer: 64 roundings of the type that sums are made in."""

TEXT = (
    "A comparison of two chips starts with the same words. Every layer reads what the layer before it has written, "
    "and a small error grows or fades on its way. def mean(values): return sum(values) / len(values). The first layer "
    "whose error is larger than rounding can make it tells where to look. class Reader: pass. Numbers such as 3.14159 "
    "and 2.71828, names in many cases, (brackets), quotes and long identifiers_with_underscores keep tokens uneven. "
)


@dataclass(frozen=True)
class Apart:
    """Two logits: mean Kullback-Leibler divergence in nats; share of tokens with the same likeliest one; largest."""

    kl: float
    greedy: float
    largest: float


@dataclass(frozen=True)
class Followed:
    """One side.

    Attributes:
        errors, bounds: of every layer; root mean square over tokens of a hidden state's relative error.
        left: the first layer whose error is beyond its bound.
        blame: the first operator call that is wrong on this run's own arguments.
        logits: against exact ones with the same formats.
        formats: exact ones with this side's formats against the official arithmetic's.
        lossy: the formats lose bits that the checkpoint has, as HAL_ALLOW=requantize permits.
    """

    name: str
    target: str
    emulated: bool
    numerics: Numerics
    kernels: dict[str, str] = field(repr=False)
    errors: tuple[float, ...]
    bounds: tuple[float, ...]
    left: int | None
    blame: Blame | None
    logits: Apart
    formats: Apart
    lossy: bool

    @property
    def agrees(self) -> bool:
        """Inside every bound, and every operator right."""
        return self.left is None and self.blame is None

    @property
    def worst(self) -> float:
        """The error of the worst layer; 1 is its bound."""
        return max((e / b for e, b in zip(self.errors, self.bounds, strict=True) if b), default=0.0)

    @property
    def answer(self) -> str:
        """What was found, in a sentence."""
        if self.blame is not None:
            where = f"in layer {self.blame.layer}" if self.blame.layer is not None else "outside the layers"
            return f"{self.name}: the first wrong operator is {where}, at token {self.blame.token}: {self.blame.text}"
        if self.left is not None:
            error, bound = self.errors[self.left], self.bounds[self.left]
            return (
                f"{self.name}: hidden states leave their bound after layer {self.left} ({error:.2g}, allowed "
                f"{bound:.2g}), though every operator is right on the arguments that it got: look between operators"
            )
        return f"{self.name}: every layer within {self.worst:.2g} of its bound, every operator right"


@dataclass(frozen=True)
class Trajectory:
    """Both sides on the same tokens. `apart`: their logits; `between`: their hidden states after every layer."""

    checkpoint: str
    tokens: int
    kinds: tuple[str, ...]
    sides: tuple[Followed, Followed]
    between: tuple[float, ...]
    apart: Apart

    @property
    def agrees(self) -> bool:
        """Neither side is wrong."""
        return all(side.agrees for side in self.sides)

    @property
    def answer(self) -> str:
        """Whether the model is the same on both sides, and where a side goes wrong first."""
        if not self.agrees:
            return " ".join(f"{side.answer}." for side in self.sides if not side.agrees)
        a, b = (side.name for side in self.sides)
        worst = max(side.worst for side in self.sides)
        return (
            f"{a} and {b} agree on the model: over {self.tokens} tokens every layer is within {worst:.2g} of its "
            f"bound, and {self.apart.greedy:.1%} of the likeliest tokens are equal."
        )


def tokens_of(checkpoint: Path, text: str | None, count: int) -> tuple[int, ...]:
    """The first `count` tokens of a text; ours, over and over, where none is given.

    Raises:
        CheckpointError: there is no checkpoint, or no tokenizer.
        ConfigError: the text has no tokens.
    """
    from hal.models.deepseek_v4 import Checkpoint, Tokenizer

    Checkpoint.open(checkpoint)
    ids = Tokenizer.open(checkpoint).encode(TEXT if text is None else text)
    if not ids:
        raise ConfigError("the prompt has no tokens", where="--prompt", fix="give some text")
    return tuple((list(ids) * (count // len(ids) + 1))[:count] if text is None else ids[:count])


def follow(
    checkpoint: Path,
    names: tuple[str, str],
    tokens: Sequence[int],
    tell: Callable[[str], None] = lambda _: None,
    *,
    dtype: str | None = None,
) -> Trajectory:
    """Run a model on two backends, and on the reference as often as bounds need it.

    Args:
        tokens: of one request: a prefill in two chunks, then some decoding steps.
        tell: is told what runs.
        dtype: of activations; by default each chip's own.

    Raises:
        HalError: a side cannot run the model; the checkpoint cannot be read.
    """
    job = Job(checkpoint, _pieces(tuple(tokens)), dtype)
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(name, limit=LIMIT)) for name in names]
        reference = stack.enter_context(Runner("reference", limit=LIMIT))
        ran = [_told(tell, f"{runner.backend}: the model", runner.run, job) for runner in runners]
        sides = [_followed(runner, reference, job, one, tell) for runner, one in zip(runners, ran, strict=True)]
    between = tuple(map(_rms, ran[0].layers, ran[1].layers))
    apart = _apart(ran[0].logits, ran[1].logits)
    return Trajectory(str(checkpoint), len(tokens), ran[0].kinds, (sides[0], sides[1]), between, apart)


def _pieces(tokens: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Two uneven chunks, then one by one: what a run consists of."""
    ones = min(8, len(tokens) // 4)
    body = tokens[: len(tokens) - ones]
    cut = 2 * len(body) // 3
    return tuple(piece for piece in (body[:cut], body[cut:], *((token,) for token in tokens[len(body) :])) if piece)


def _told(tell: Callable[[str], None], what: str, run: Callable[[Job], Ran], job: Job) -> Ran:
    tell(what)
    return run(job)


def _followed(runner: Runner, reference: Runner, job: Job, ran: Ran, tell: Callable[[str], None]) -> Followed:
    from dataclasses import replace

    from hal.models.deepseek_v4 import Checkpoint, Numerics

    config = Checkpoint.open(job.checkpoint).config
    mine = replace(job, numerics=ran.numerics)
    exact = _told(tell, f"{runner.backend}: exact, with its formats", reference.run, replace(mine, wide=True))
    noise = NOISE[ran.numerics.dtype]
    honest = [
        _told(tell, f"{runner.backend}: honest run {seed + 1}", reference.run, replace(mine, noise=noise, seed=seed))
        for seed in range(HONEST)
    ]
    official = Numerics.on(config, "cpu", None, dtype="float64")
    formal = _told(tell, "official arithmetic", reference.run, replace(job, numerics=official))
    tell(f"{runner.backend}: every operator of the run")
    blame = runner.check(job)
    errors = tuple(map(_rms, ran.layers, exact.layers))
    floor = SUMS[ran.numerics.dtype]
    bounds = tuple(
        max(floor * (layer + 1) ** 0.5, SLACK * max(_rms(one.layers[layer], x) for one in honest))
        for layer, x in enumerate(exact.layers)
    )
    outside = [layer for layer, (e, b) in enumerate(zip(errors, bounds, strict=True)) if not e <= b]
    lossy = ran.numerics.integers and config.quantization is not None
    return Followed(
        runner.backend,
        ran.target,
        ran.emulated,
        ran.numerics,
        ran.kernels,
        errors,
        bounds,
        outside[0] if outside else None,
        blame,
        _apart(exact.logits, ran.logits),
        _apart(formal.logits, exact.logits),
        lossy,
    )


def _rms(got: Tensor, exact: Tensor) -> float:
    """Root mean square over tokens of the relative error of a token's hidden state; infinite where it has a NaN."""
    error = (got.double() - exact.double()).norm(dim=1) / exact.double().norm(dim=1).clamp_min(1e-300)
    found = float(error.square().mean().sqrt())
    return found if found == found else float("inf")


def _apart(exact: Tensor, got: Tensor) -> Apart:
    p, q = exact.double().log_softmax(-1), got.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    same = (exact.argmax(-1) == got.argmax(-1)).double().mean()
    return Apart(float(kl), float(same), float((exact.double() - got.double()).abs().max()))

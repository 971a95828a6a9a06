"""`hal generate`: continue a text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from hal.cli.output import Json, console, show, working


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with config.json, tokenizer.json and *.safetensors.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal texts.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given more than once.")] = None,
    speculative: Annotated[bool, typer.Option(help="Draft with the MTP block; same tokens, fewer steps.")] = False,
    backend: Annotated[str | None, typer.Option(help="As HAL_BACKEND.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float64; by default the chip's.")] = None,
    simulate: Annotated[
        bool | None, typer.Option(help="The official code's simulated quantisation; by default as the checkpoint.")
    ] = None,
    json: Json = False,
) -> None:
    """Continue a text with a DeepSeek-V4 checkpoint. The text goes to stdout as it comes, a summary to stderr."""
    from hal.models.deepseek_v4 import DeepseekV4, Session, Tokenizer

    with working(f"loading {checkpoint}"):
        began = perf_counter()
        tokenizer = Tokenizer.open(checkpoint)
        model = DeepseekV4.from_checkpoint(checkpoint, backend=backend, dtype=dtype, simulate=simulate)
        loading = perf_counter() - began

    ids = tokenizer.encode(prompt)
    write = _discard if json else _write
    text = StoppingText(tokenizer.stream(), stop or [], write)
    total = len(ids) + max_new_tokens
    session = Session(
        model,
        model.caches(tokens=total, chunk=min(total, 512)),
        speculative=speculative,
        stream=lambda _, token: text.add(token),
    )
    request = session.add(
        ids, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=model.config.eos_token_ids
    )
    write(prompt)
    began = perf_counter()
    while not text.stopped and (session.waiting or session.running):
        session.step()
    seconds = perf_counter() - began
    text.end()
    write("\n")

    tokens = len(request.generated)
    data: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "prompt": prompt,
        "text": text.text,
        "tokens": tokens,
        "prompt_tokens": len(ids),
        "finish": "stop" if text.stopped else request.finish,
        "load_seconds": loading,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "drafts": {"tried": session.drafted, "accepted": session.accepted} if speculative else None,
        "backend": model.plan.target.name,
        "plan": model.plan.fingerprint,
    }
    if json:
        show(data, True)
    else:
        _summary(data)


class StoppingText:
    """Text of streamed tokens that ends before the first of some strings; holds back what may become one of them."""

    def __init__(self, stream: Any, stops: list[str], write: Callable[[str], None]) -> None:
        self._stream, self._stops, self._write = stream, [s for s in stops if s], write
        self._held = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """Take a token; write the text that is certain to stay."""
        if self.stopped:
            return
        self._held += self._stream.add(token)
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self._out(min(found))
            self._held, self.stopped = "", True
        else:
            self._out(len(self._held) - self._undecided())

    def end(self) -> None:
        """Write what was held back."""
        if not self.stopped:
            self._held += self._stream.end()
            self._out(len(self._held))

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max((len(stop) for stop in self._stops), default=1) - 1)
        ends = (length for length in range(longest, 0, -1) if self._begins(self._held[-length:]))
        return next(ends, 0)

    def _begins(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)

    def _out(self, count: int) -> None:
        certain, self._held = self._held[:count], self._held[count:]
        self.text += certain
        self._write(certain)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _discard(text: str) -> None:
    pass


def _summary(data: dict[str, Any]) -> None:
    words = [
        f"{data['tokens']} tokens in {data['seconds']:.1f} s",
        f"{data['tokens_per_second']:.1f} tokens/s",
        f"loaded in {data['load_seconds']:.1f} s",
    ]
    if data["drafts"]:
        words.append(f"{data['drafts']['accepted']} of {data['drafts']['tried']} drafts accepted")
    words += [f"backend {data['backend']}", f"plan {data['plan'][:12]}"]
    console(stderr=True).print(" · ".join(words), style="dim", markup=False)

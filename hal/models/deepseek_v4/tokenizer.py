"""Text <-> token ids by a checkpoint's `tokenizer.json` (the `tokenizers` library's format)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from hal.errors import CheckpointError, ConfigError


class Tokenizer:
    """A checkpoint's tokenizer."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, path: str | Path) -> Tokenizer:
        """Read `tokenizer.json` of the folder `path`, or that file itself.

        Raises:
            CheckpointError: the file is missing or is not a tokenizer.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise CheckpointError(
                "the checkpoint has no tokenizer",
                where=str(file),
                fix="copy the model's tokenizer.json into its folder",
            )
        try:
            return cls(_Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise CheckpointError(
                f"the tokenizer cannot be read: {error}", where=str(file), fix="download it again"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the special tokens that the tokenizer itself adds.

        Raises:
            ConfigError: the text has bytes that are not UTF-8.
        """
        if any(0xD800 <= ord(letter) < 0xE000 for letter in text):  # how Python passes bytes on that it cannot decode
            raise ConfigError("the text is not UTF-8", where="prompt", fix="give text in UTF-8")
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens are left out."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def stream(self) -> TextStream:
        """A decoder for tokens that arrive one at a time."""
        return TextStream(self)


class TextStream:
    """Text of a growing token list: holds back a character until all its bytes have arrived."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._text = ""

    def add(self, token: int) -> str:
        """Text that `token` completes; may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._text) :]
        if len(self._ids) > _KEEP and new:
            self._ids = self._ids[-_OVERLAP:]
            text = self._tokenizer.decode(self._ids)
        self._text = text
        return new

    def end(self) -> str:
        """What was held back and will not be completed any more."""
        text = self._tokenizer.decode(self._ids)
        new, self._text = text[len(self._text) :], text
        return new


_KEEP, _OVERLAP = 64, 8
"""Decoding restarts from the last few tokens now and then, so that a long text costs linear time."""

"""Tokenizers: text there and back, and text that arrives token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from hal.errors import CheckpointError, ConfigError
from hal.models.deepseek_v4 import Tokenizer


def byte_level() -> Library:
    """One token per byte."""
    library = Library(
        models.BPE(vocab={char: i for i, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=300))
def test_text_survives_one_byte_at_a_time(text: str) -> None:
    """A character of several bytes comes out once, whole, when its last byte has arrived."""
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    if "\ufffd" not in text:
        assert "".join(stream.add(token) for token in ids) == text
        assert stream.end() == ""


def test_a_character_that_never_ends_is_shown_at_the_end() -> None:
    tokenizer = Tokenizer(byte_level())
    stream = tokenizer.stream()
    told = [stream.add(token) for token in tokenizer.encode("aé")[:2]]
    assert [*told, stream.end()] == ["a", "", "\ufffd"]


def test_files(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.open(tmp_path).encode("ab") == Tokenizer.open(tmp_path / "tokenizer.json").encode("ab")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Tokenizer.open(tmp_path / "other")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.open(tmp_path)


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        Tokenizer(byte_level()).encode("a\udcff")

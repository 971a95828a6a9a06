"""What the user asked for, with the origin of every word: argument, `with hal.use`, environment, file, default."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from hal import environment
from hal.errors import ConfigError
from hal.lock import Lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULTS = {"backend": "auto", "ops": "", "allow": "unverified"}


@dataclass(frozen=True)
class Policy:
    """Backend, operator rules, permissions and the lock that holds a plan; `origins` says where each came from."""

    backend: str
    ops: tuple[tuple[str, tuple[str, ...]], ...]
    allow: frozenset[str]
    origins: dict[str, str]
    lock: Lock | None = None

    @classmethod
    def current(cls, *, backend: str | None = None, ops: str | None = None, allow: str | None = None) -> Policy:
        """Arguments before `with hal.use`, before the environment, before HAL_CONFIG, before the defaults."""
        variables = environment.read()
        config = variables.get("HAL_CONFIG", "")
        settings, lock = _file(config)
        layers: list[tuple[str, Mapping[str, str | None]]] = [
            ("argument", {"backend": backend, "ops": ops, "allow": allow}),
            *(("with hal.use", words) for words in reversed(_USED.get())),
            ("environment", {name: variables.get(f"HAL_{name.upper()}") for name in DEFAULTS}),
            (config, settings),
            ("default", DEFAULTS),
        ]
        words: dict[str, str] = {}
        origins: dict[str, str] = {}
        for name in DEFAULTS:
            origin, value = next((origin, layer[name]) for origin, layer in layers if layer.get(name) is not None)
            words[name] = value or ""
            origins[name] = f"HAL_{name.upper()}" if origin == "environment" else origin
        return cls(
            words["backend"] or "auto",
            environment.rules(words["ops"], origins["ops"]),
            environment.allowed(words["allow"], origins["allow"]),
            {**origins, "lock": config},
            lock,
        )


_USED: ContextVar[tuple[dict[str, str | None], ...]] = ContextVar("hal.use", default=())


@contextmanager
def use(*, backend: str | None = None, ops: str | None = None, allow: str | None = None) -> Iterator[None]:
    """Plan inside the block as if the variables were set; beats the environment, inner blocks beat outer ones."""
    token = _USED.set((*_USED.get(), {"backend": backend, "ops": ops, "allow": allow}))
    try:
        yield
    finally:
        _USED.reset(token)


def _file(path: str) -> tuple[dict[str, str | None], Lock | None]:
    """Settings, and the lock if the file is one: then its chip is the setting."""
    if not path:
        return {}, None
    try:
        with Path(path).open("rb") as file:
            words = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", where="HAL_CONFIG", fix="name a readable TOML file"
        ) from error
    if "calls" in words:
        lock = Lock.read(path)
        return {"backend": lock.target}, lock
    for name in words:
        if name not in DEFAULTS:
            raise ConfigError(f"{name!r} is not a setting", where=path, fix=environment.nearest(name, DEFAULTS))
    return {name: str(value) for name, value in words.items()}, None

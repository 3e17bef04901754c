"""Stub until branch `config` is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Entry:
    options: Mapping[str, object]
    origin: str
    lines: Mapping[str, int] = field(default_factory=dict)
    is_project: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    origin: str
    line: int | None
    what: str
    may_tighten: bool
    is_project: bool


@dataclass(frozen=True, slots=True)
class Configuration:
    entries: tuple[Entry, ...] = ()
    problems: tuple[Problem, ...] = ()
    basis: object = None


def read(environ: Mapping[str, str], directory: str | None) -> Configuration:  # noqa: ARG001 - a stub
    return Configuration()

"""Finding: the result of one of `doctor`'s checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    """problem: something does not work, or is not safe; warning: somebody should look at it."""
    found: str
    todo: str = ""

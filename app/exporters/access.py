"""Access: what a destination asks of whoever posts there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Access:
    kind: str
    key: str = field(default="", repr=False)
    """Helicone's API key."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    preset: str = ""
    project: str = ""
    """Under which a receiver files what it gets; '' for its own default."""

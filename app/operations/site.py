"""Site: what `doctor` looks at, with the settings that hold where it was typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings


@dataclass(frozen=True, slots=True)
class Site:
    """What there is to look at."""

    settings: Settings
    sources: Sources
    directory: Path
    """Where the command was typed: perhaps a project."""
    now_ms: int

    @property
    def spool(self) -> Spool:
        return Spool(self.settings.spool_directory)

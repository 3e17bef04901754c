"""Site: what the web view looks at, and how its pages ask."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.operations.titles import Titles
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.sources.opencode.store import Store


@dataclass(frozen=True, slots=True)
class Site:
    sources: Sources
    directory: Path
    """Where the command was typed: perhaps a project."""
    store: Path
    """OpenCode's."""
    options: str = ""
    """What the commands that are shown must be told, so that they mean this queue."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at all of it, for one page."""

    site: Site
    settings: Settings
    db: sqlite3.Connection
    now_ms: int
    asked: Mapping[str, str]
    """The parameters of the page's address."""

    def store(self) -> Store:
        return Store(self.site.store)

    def titles(self) -> Titles:
        return Titles(self.store())

    def number(self, name: str, otherwise: int, most: int) -> int:
        """A number of the address, from 1 to `most`."""
        told = self.asked.get(name, "")
        return min(max(int(told), 1), most) if told.isdecimal() and len(told) <= len(str(most)) else otherwise

    def text(self, name: str) -> str | None:
        """None where nothing was asked for."""
        return self.asked.get(name, "").strip() or None

    def command(self, words: str) -> str:
        return f"opencode-helicone {words}{self.site.options}"


@dataclass(frozen=True, slots=True)
class Page:
    template: str
    title: str
    """No title of a session: browsers write it to their history."""
    values: Mapping[str, object]


View = Callable[[Look], Page]


def stamp(spool: Path) -> str:
    """Another one when anything was committed to the queue, or a process came or went. Reads no row."""
    told = []
    of_spool = Spool(spool)
    for path in (spool / "ledger.db", spool / "ledger.db-wal", of_spool.hooks, of_spool.workers):
        try:
            found = path.stat()
        except OSError:
            told.append("none")
        else:
            if not found.st_size:  # an empty log, as whoever only looks makes it
                told.append("none")
                continue
            told.append(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]

"""How a project folder is captured by what a command does in it.

Later commands are not looser than live capture was: what its hook recorded last counts wherever the command is typed,
and so do the folder's own files, where they are there; of what may leave, the strictest of all of it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from app import destination
from app.capture import capture, secrets_of_this_machine
from app.export import Capture
from app.settings import Settings
from app.sources import Sources
from app.spool import find_target, folder


class Folders:
    """How each project folder is captured. Found out once for each."""

    def __init__(self, db: sqlite3.Connection, sources: Sources) -> None:
        self._db = db
        self._sources = sources
        self._secrets = secrets_of_this_machine(sources.environ)
        self._found: dict[str, tuple[Settings, Capture | None]] = {}

    def find(self, directory: str | None) -> tuple[Settings, Capture | None]:
        """Its settings, and its capture unless it is held or `enable` is false. Raises SettingsError, PatternError."""
        name = folder(self._db, directory)
        if name not in self._found:
            options = destination.folder_options(self._db, name) or {}
            settings = self._sources.load(directory or None, recorded=options)
            is_captured = settings.enable and not settings.held
            self._found[name] = (settings, capture(settings, self._secrets) if is_captured else None)
        return self._found[name]


def effective(db: sqlite3.Connection, sources: Sources, directory: Path) -> Settings:
    """The settings for work in `directory`, with its capture options and its destination's delivery options."""
    ours = find_target(db, sources.load())
    options = dict(ours.delivery_options if ours else {})
    options.update(destination.folder_options(db, folder(db, str(directory))) or {})
    return sources.load(str(directory), recorded=options)

"""What was recorded of the plugin's options, applied to what a command does in a project folder.

Later commands must not be looser than live capture was: the options that a folder's plugin brought last count for all
sessions of that folder, wherever the command is typed.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from app import destination
from app.capture import capture, secrets_of_this_machine
from app.enqueue import Capture
from app.settings import Recorded, Settings
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
        """Its settings, and its capture unless `enable` is false. Raises SettingsError, PatternError."""
        name = folder(self._db, directory)
        if name not in self._found:
            options = destination.folder_options(self._db, name)
            recorded = Recorded(options, "plugin options, last seen for this folder") if options else None
            settings = self._sources.load(recorded)
            self._found[name] = (settings, capture(settings, self._secrets) if settings.enable else None)
        return self._found[name]


def effective(db: sqlite3.Connection, sources: Sources, directory: Path) -> Settings:
    """The settings for work in `directory`, with its capture options and its destination's delivery options."""
    ours = find_target(db, sources.load())
    options = dict(destination.folder_options(db, folder(db, str(directory))) or {})
    options.update(ours.delivery_options if ours else {})
    return sources.load(Recorded(options, "plugin options, recorded by its hook") if options else None)

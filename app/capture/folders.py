"""Folders for a command: finds the settings of each session's folder, and how it is captured.

Later commands are not looser than live capture was: what its hook recorded last counts wherever the command is typed,
and so do the folder's own files, where they are there; of what may leave, the strictest of all of it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from app.capture.config import capture, own_secrets
from app.capture.keyring import Keyring
from app.capture.targets import find_target, folder
from app.ledger import folders
from app.privacy.terms import Capture
from app.settings.lookup import Sources
from app.settings.model import Settings


class Folders:
    """How each project folder is captured. Its settings are found out once; what is a secret, each time."""

    def __init__(self, db: sqlite3.Connection, sources: Sources) -> None:
        self._db = db
        self._sources = sources
        self._keyring = Keyring(sources.environ)
        self._settings: dict[str, Settings] = {}
        self._found: dict[str, tuple[tuple[str, ...], Capture | None]] = {}
        """With the values that each masks."""

    def find(self, directory: str | None, *, to_redact: bool = True) -> tuple[Settings, Capture | None]:
        """Its settings, and its capture unless it is held or `enable` is false. Raises SettingsError, PatternError.

        Whoever has nothing `to_redact` does without what became known as a secret since the folder was found first.
        """
        name = folder(self._db, directory)
        if name not in self._settings:
            options = folders.folder_options(self._db, name) or {}
            self._settings[name] = self._sources.load(directory or None, recorded=options)
        settings = self._settings[name]
        if to_redact or name not in self._found:
            known = self._keyring.learn(self._sources.documents(directory or None), own_secrets(settings))
            if name not in self._found or self._found[name][0] is not known:
                is_captured = settings.enable and not settings.held
                self._found[name] = (known, capture(settings, known) if is_captured else None)
        return settings, self._found[name][1]


def effective(db: sqlite3.Connection, sources: Sources, directory: Path) -> Settings:
    """The settings for work in `directory`, with its capture options and its destination's delivery options."""
    ours = find_target(db, sources.load())
    options = dict(ours.delivery_options if ours else {})
    options.update(folders.folder_options(db, folder(db, str(directory))) or {})
    return sources.load(str(directory), recorded=options)

"""Policy check: asks before each POST whether the settings in force allow it.

Settings change while a worker runs: files are edited, and a hook records for its folder what no other process finds by
itself. All of that is read anew each time; only what follows from it is kept while it stays equal.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from app.capture.config import capture, own_secrets, why_nothing
from app.capture.keyring import Keyring
from app.ledger import folders
from app.privacy.policy import Hold, Permit, Post, Recapture, is_as_strict
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.settings.lookup import Sources
from app.settings.model import SettingsError


@dataclass(frozen=True, slots=True)
class _Found:
    """What follows for a folder from what was read."""

    basis: object
    capture: Capture | Hold
    permits: dict[str, Permit] = field(default_factory=dict)
    """By what bytes were made under."""


def _permit(capturing: Capture | Hold, made_under: str) -> Permit:
    if isinstance(capturing, Hold):
        return capturing
    return Post() if is_as_strict(made_under, capturing.policy.facts("")) else Recapture()


class PolicyCheck:
    """Shared by the threads of a worker."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.keyring = Keyring(sources.environ)
        self._found: dict[str, _Found] = {}

    def permit(self, db: sqlite3.Connection, folder: str, made_under: str) -> Permit:
        """Permit for bytes of this folder (as the ledger knows it) that were made under a policy (`Policy.facts`)."""
        found = self._look(db, folder)
        if made_under not in found.permits:
            found.permits[made_under] = _permit(found.capture, made_under)
        return found.permits[made_under]

    def capture(self, db: sqlite3.Connection, folder: str) -> Capture | Hold:
        """How the folder would be captured now; Hold where nothing of it may leave, or nobody can say what may."""
        return self._look(db, folder).capture

    def _look(self, db: sqlite3.Connection, folder: str) -> _Found:
        options = folders.folder_options(db, folder)
        basis = (self._sources.basis(), options, self.keyring.look())
        found = self._found.get(folder)
        if found is None or found.basis != basis:
            found = self._found[folder] = _Found(basis, self._read(options or {}))
        return found

    def basis(self, db: sqlite3.Connection) -> object:
        """Equal for as long as the answers for all folders are."""
        return self._sources.basis(), folders.all_folder_options(db)

    def _read(self, options: dict[str, object]) -> Capture | Hold:
        try:
            settings = self._sources.load(recorded=options)
            if reason := why_nothing(settings):
                return Hold(reason)
            if settings.silence:
                return Hold(settings.silence)
            return capture(settings, self.keyring.learn(self._sources.documents(None), own_secrets(settings)))
        except (SettingsError, PatternError):
            # Not the message: it quotes values. And not the settings before: what is new in them may withhold more.
            return Hold("the settings cannot be used (config show says why)")

"""What the settings in force allow, asked before every POST.

Settings change while a worker runs: files are edited, and a plugin that is loaded with other options has its hook
record them for its folder. All of that is read anew each time; only what follows from it is kept while it stays equal.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from app import destination
from app.capture import capture, secrets_of_this_machine
from app.enqueue import Capture
from app.policy import Hold, Permit, Post, Remake, is_as_strict, strictest
from app.redact import PatternError
from app.settings import Recorded, Settings, SettingsError, load
from app.sources import Sources


class Permits:
    """Shared by the threads of a worker."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._known = secrets_of_this_machine(sources.environ)
        self._found: dict[str, tuple[object, Capture | Hold]] = {}

    def permit(self, db: sqlite3.Connection, folder: str, made_under: str) -> Permit:
        """For bytes of this folder (as the ledger knows it) that were made under a policy (`Policy.facts`)."""
        found = self.capture(db, folder)
        if isinstance(found, Hold):
            return found
        return Post() if is_as_strict(made_under, found.policy.facts("")) else Remake()

    def capture(self, db: sqlite3.Connection, folder: str) -> Capture | Hold:
        """How the folder would be captured now; Hold where nothing of it may leave, or nobody can say what may."""
        options = destination.folder_options(db, folder)
        basis = (self._sources.texts(), options)
        seen = self._found.get(folder)
        if seen is None or seen[0] != basis:
            seen = self._found[folder] = (basis, self._read(options or {}))
        return seen[1]

    def basis(self, db: sqlite3.Connection) -> object:
        """Equal for as long as the answers for all folders are."""
        return self._sources.texts(), destination.all_folder_options(db)

    def _read(self, options: dict[str, object]) -> Capture | Hold:
        try:
            settings = self._sources.load(Recorded(options, "plugin options, last seen for this folder"))
            recorded = load(environ={}, base=Path("/"), plugin=Recorded(options, "options last seen for this folder"))
            settings = tightest(settings, recorded)
            if not settings.enable:
                return Hold(f"export is switched off: enable is false ({settings.origin('enable')})")
            if settings.export_mode == "off":
                return Hold(f"export is switched off: export mode is off ({settings.origin('export_mode')})")
            return capture(settings, self._known)
        except (SettingsError, PatternError):
            # Not the message: it quotes values. And not the settings before: what is new in them may withhold more.
            return Hold("the settings cannot be used (config show says why)")


def tightest(settings: Settings, recorded: Settings) -> Settings:
    """The settings, and whatever is stricter in what was recorded.

    A running worker's environment is as old as the worker; what a later hook recorded of its own is newer.
    """
    changed: dict[str, object] = {}
    if not recorded.enable:
        changed["enable"] = False
    if strictest(settings.export_mode, recorded.export_mode) != settings.export_mode:
        changed["export_mode"] = recorded.export_mode
    if "redact_secrets" in recorded.origins and recorded.redact_secrets:
        changed["redact_secrets"] = True
    origins = {name: recorded.origins[name] for name in changed}
    patterns = tuple(dict.fromkeys((*settings.redact_patterns, *recorded.redact_patterns)))
    return settings.model_copy(
        update={**changed, "redact_patterns": patterns, "origins": {**settings.origins, **origins}}
    )

"""Projects: remembers how each folder that one OpenCode has open is captured, by its lines and settings."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from app.capture.config import capture, own_secrets
from app.capture.keyring import Keyring
from app.capture.messages import Line
from app.capture.targets import folder
from app.ledger import adoption, folders, incidents
from app.ledger.destinations import Destination
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.runtime import clock
from app.settings.destinations import others
from app.settings.lookup import Sources
from app.settings.model import HELICONE, Settings, SettingsError
from app.settings.views import folder_record


@dataclass(frozen=True, slots=True)
class Captured:
    """How a folder is captured, and what that follows from."""

    line: Line
    """The last one that brought other options."""
    basis: object
    folder: str
    settings: Settings
    known: tuple[str, ...] = field(repr=False)
    """The values that `capture` masks."""
    capture: Capture | None
    """None where `enable` is false, where the folder is held, and while the settings cannot be used."""
    beside: Mapping[str, Capture] = field(default_factory=dict)
    """The same for the other destinations, by name, as far as their settings can be used."""

    def towards(self, name: str) -> Capture | None:
        return self.capture if name == HELICONE else self.beside.get(name)


class Captures:
    """Captures by directory; recorded in the ledger for later commands."""

    def __init__(
        self,
        sources: Sources,
        keyring: Keyring,
        db: sqlite3.Connection,
        ours: Destination,
        begin: Callable[[str, str], None],
        tell: Callable[[str], None],
    ) -> None:
        """`begin` is told of each directory, and its folder, of which capture begins; `tell` of what is wrong."""
        self._sources = sources
        self._keyring = keyring
        self._db = db
        self._target = ours
        self._begin = begin
        self._tell = tell
        self._seen: dict[str, Captured] = {}
        self._unknown: tuple[str, ...] = ()
        """What was told of secrets that could not be looked for."""

    def take(self, line: Line) -> Capture | None:
        """How this line's folder is captured; None where `enable` is false, or where the folder is held.

        What is written while it is held is taken from OpenCode's store when the files are right.
        Raises SettingsError, PatternError, sqlite3.Error.
        """
        seen = self._seen.get(line.directory)
        basis = self._sources.basis(line.directory or None)
        if seen is not None and (seen.line.options, seen.basis) == (line.options, basis):
            return self._as_known(seen).capture
        try:
            settings = self._sources.load(line.directory or None, handed=line.options)
            known = self._keyring.learn(self._sources.documents(line.directory or None), own_secrets(settings))
            self._tell_unknown()
            made = capture(settings, known) if settings.enable and not settings.held else None
            beside = {} if made is None else self._beside(settings, known)
        except (SettingsError, PatternError):
            if seen is not None:  # what it was says nothing any more
                self._seen[line.directory] = replace(seen, basis=None, capture=None, beside={})
            raise
        place = folder(self._db, line.directory)
        by_files = self._sources.is_held_by_files(line.directory or None, settings)
        record = folder_record(settings, is_held_by_files=by_files)
        folders.remember_folder(self._db, place, self._target.id, record, clock.now_ms())
        for one in settings.destinations.values():
            if one.unusable:  # another process may know what this one does not, and see nothing wrong
                incidents.note_at_most(self._db, one.unusable, clock.now_ms(), 1)
        for complaint in settings.complaints:
            self._tell(f"{'a folder is held: ' if complaint.holds else ''}{complaint.short}")
        if not settings.enable or all(one.export_mode == "off" for one in (settings, *others(settings))):
            folders.stop_capture(self._db, place)
        else:
            folders.resume_capture(self._db, place, clock.now_ms())
            self._begin(line.directory, place)
        # Before anything new of these sessions: older turns go first.
        adoption.adopt_rotated(self._db, self._target, clock.now_ms())
        self._seen[line.directory] = Captured(line, basis, place, settings, known, made, beside)
        return made

    def _beside(self, settings: Settings, known: tuple[str, ...]) -> dict[str, Capture]:
        """A pattern of its own that cannot be used keeps one destination back, and no other."""
        found = {}
        for one in others(settings):
            try:
                found[one.destination] = capture(one, known)
            except PatternError as error:
                self._tell(f"destination {one.destination} gets nothing: {error.without_text}")
        return found

    def _as_known(self, seen: Captured) -> Captured:
        """With the secrets that have become known since: OpenCode may have got a new token a moment ago."""
        known = self._keyring.look()
        self._tell_unknown()
        if seen.capture is None or seen.known is known:
            return seen
        beside = self._beside(seen.settings, known)
        renewed = replace(seen, known=known, capture=capture(seen.settings, known), beside=beside)
        self._seen[seen.line.directory] = renewed
        return renewed

    def _tell_unknown(self) -> None:
        before, self._unknown = self._unknown, self._keyring.problems
        for problem in self._unknown:
            if problem not in before:
                self._tell(problem)

    def refresh(self) -> None:
        """Look at the settings again."""
        for seen in list(self._seen.values()):
            with suppress(SettingsError, PatternError):  # said with the next notice
                self.take(seen.line)

    def seen(self, directory: str) -> Captured | None:
        found = self._seen.get(directory)
        return None if found is None else self._as_known(found)

    def by_folder(self, name: str = HELICONE) -> dict[str, Capture | None]:
        """How the folders are captured for a destination."""
        return {seen.folder: self._as_known(seen).towards(name) for seen in list(self._seen.values())}

    def of(self, place: str, name: str = HELICONE) -> Capture | None:
        """How a folder, as the ledger knows it, is captured now; None where nothing of it is to be kept."""
        found = self.by_folder(name).get(place)
        return None if found is None or found.policy.mode == "off" else found

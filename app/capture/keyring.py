"""Keyring: collects the secrets of this machine that are known now, and remembers all that were known before.

    environment, at the start ──────────┐
    OpenCode's logins ─ look ───────────┼─▶ values ─▶ the redaction of each capture
    configurations, our own key ─ learn ┘

It only grows: what was known before stays known for as long as the process runs, because an old token may stand in a
text long after OpenCode has a new one. Kept in memory alone; never stored, logged or part of an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from threading import Lock

from app.privacy.machine_secrets import of_configuration, of_environment, of_logins
from app.sources.opencode.config import Document
from app.sources.opencode.logins import Logins


class Keyring:
    """Shared by the threads of a process. Shows nothing of what it holds."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._logins = Logins(environ)
        self._lock = Lock()
        self._values: tuple[str, ...] = ()
        self._add(of_environment(environ))
        self._add(of_logins(environ.get("OPENCODE_AUTH_CONTENT", "")))

    def look(self) -> tuple[str, ...]:
        """All values that are known by now, the longest first; the same object for as long as there is nothing new.

        Asked before each capture: where nothing was written it takes less than 0.1 ms.
        """
        with self._lock:
            for text in self._logins.changed():
                self._add(of_logins(text))
            return self._values

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be looked into when it was looked last, for a person."""
        return self._logins.problems

    def learn(self, documents: Iterable[Document], own: Iterable[str]) -> tuple[str, ...]:
        """What configurations hold that are in force somewhere, and the program's own keys there. Tells as `look`."""
        with self._lock:
            for document in documents:
                self._add(of_configuration(document.value))
            self._add(own)
        return self.look()

    def _add(self, values: Iterable[str]) -> None:
        new = set(values) - set(self._values)
        if new:
            self._values = tuple(sorted({*self._values, *new}, key=lambda value: (-len(value), value)))

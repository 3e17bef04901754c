"""Failures: what goes wrong with the database is logged once, and once more when it is over.

Many threads meet the same outage, each again and again: a line for each would hide what else there is.
"""

from __future__ import annotations

import logging
import threading


class DatabaseFailures:
    """Of one process."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._told: dict[str, set[str]] = {}
        """By what failed."""

    def failed(self, what: str, why: str) -> None:
        """Log it, unless the same was logged since this worked last."""
        with self._lock:
            told = self._told.setdefault(what, set())
            is_new = why not in told
            told.add(why)
        if is_new:
            self._log.warning("%s: %s", what, why)

    def works(self, *whats: str) -> None:
        """These have just done what they do with the database."""
        with self._lock:
            failed = [what for what in whats if self._told.pop(what, None)]
        if failed:
            self._log.warning("%s: the database works again", ", ".join(failed))

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
        self._told: set[str] = set()

    def failed(self, message: str) -> None:
        """Log it, unless it was since the database worked last."""
        with self._lock:
            is_new = message not in self._told
            self._told.add(message)
        if is_new:
            self._log.warning("%s", message)

    def works(self) -> None:
        """The database has just done what it was asked."""
        with self._lock:
            was_away = bool(self._told)
            self._told.clear()
        if was_away:
            self._log.warning("the database works again")

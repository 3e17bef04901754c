"""Reads what OpenCode logs in with, as its files and its store hold it now.

    auth.json                     keys of providers, OAuth tokens
    mcp-auth.json                 tokens and secrets of MCP servers
    the store: credential         the same in OpenCode 2, and in 1.18 where it has brought them over
    the store: account            tokens of the console

OpenCode writes a new token there in the middle of a session, whenever the old one has run out.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from app.sources.opencode.access import AbsentError, Access, StoreError
from app.sources.opencode.config_files import Files, UnreadableError
from app.sources.opencode.folders import data_folder
from app.sources.opencode.store import databases, store_file

FILE_BYTES_MAX = 16_000_000
_FILES = ("auth.json", "mcp-auth.json")
_TABLES = {
    "credential": ("value",),
    "account": ("access_token", "refresh_token"),
    "control_account": ("access_token", "refresh_token"),
}


class Logins:
    """Tells what is new in them. None of them need be there."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        folder = data_folder(environ)
        self._files: dict[Path, bytes | None] = {folder / name: None for name in _FILES}
        """What each held last. They are small: reading one takes no longer than asking for its times, which may stand
        still for some milliseconds."""
        self._store = store_file(environ)
        self._written: dict[Path, object] = {}
        self._problems: dict[Path, str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """Which of them could not be read when they were looked at last, and why, for a person."""
        return tuple(f"what OpenCode logs in with is not known: {one}" for one in self._problems.values())

    def changed(self) -> Iterator[str | bytes]:
        """Each that was written since it was told last, as JSON; also what is broken, as it stands there."""
        for path, before in self._files.items():
            try:
                data = Files().read(path, FILE_BYTES_MAX)
            except UnreadableError as error:
                self._problems[path] = f"{path}: {error.what}"
                continue
            self._problems.pop(path, None)
            if data and data != before:
                self._files[path] = data
                yield data
        for path in databases(self._store):
            written = _written(path)
            # What could not be read is asked again each time: whoever was in the way may leave no trace.
            if written != self._written.get(path) or path in self._problems:
                self._written[path] = written
                yield from self._stored(path)

    def _stored(self, path: Path) -> list[str]:
        self._problems.pop(path, None)
        try:
            found, damaged = Access(path).ask(_held)
        except AbsentError:
            return []
        except StoreError as error:
            self._problems[path] = str(error)
            return []
        if damaged:
            self._problems[path] = f"OpenCode's store {path} is damaged in {', '.join(damaged)}"
        return found


def _written(store: Path) -> object:
    """Equal for as long as nothing was written to the store. SQLite keeps its log beside what a symbolic link means."""
    # Before each capture: a Path takes longer than these calls.
    real = os.path.realpath(store) if os.path.islink(store) else str(store)  # noqa: PTH114
    found: list[tuple[int, int, int]] = []
    for path in (real, f"{real}-wal"):
        with suppress(OSError):
            stat = os.stat(path)  # noqa: PTH116
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


def _held(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """What can be read of it, and the tables in which something cannot."""
    found: list[str] = []
    damaged: list[str] = []
    for table, columns in _TABLES.items():
        there = {row["name"] for row in db.execute(f"pragma table_info({table})")}
        for column in sorted(there.intersection(columns)):
            try:
                for (value,) in db.execute(f"select {column} from {table}"):  # noqa: S608 - names from above
                    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                    if isinstance(text, str):
                        found.append(text if text.lstrip()[:1] in {"{", "["} else json.dumps(text))
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                    raise
                damaged.append(table)
    return found, damaged

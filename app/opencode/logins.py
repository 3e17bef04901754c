"""What OpenCode logs in with, as its files and its store hold it now.

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

from app.opencode.access import Access, StoreError
from app.opencode.config_files import Files, UnreadableError
from app.opencode.folders import data_folder
from app.opencode.store import databases, store_file

_FILES = ("auth.json", "mcp-auth.json")
_TABLES = {
    "credential": ("value",),
    "account": ("access_token", "refresh_token"),
    "control_account": ("access_token", "refresh_token"),
}


class Logins:
    """Tells what is new in them. None of them need be there, or be whole: then it says nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        folder = data_folder(environ)
        self._files: dict[Path, bytes | None] = {folder / name: None for name in _FILES}
        """What each held last. They are small: reading one takes no longer than asking for its times, which may stand
        still for some milliseconds."""
        self._store = store_file(environ)
        self._written: dict[Path, object] = {}

    def changed(self) -> Iterator[str | bytes]:
        """Each that was written since it was told last, as JSON."""
        for path, before in self._files.items():
            with suppress(UnreadableError):
                data = Files().read(path)
                if data and data != before:
                    self._files[path] = data
                    yield data
        for path in databases(self._store):
            written = _written(path)
            if written != self._written.get(path):
                # Also when it cannot be read: it is asked again when OpenCode has written to it.
                self._written[path] = written
                with suppress(StoreError):
                    yield from Access(path).ask(_held)


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


def _held(db: sqlite3.Connection) -> list[str]:
    found: list[str] = []
    for table, columns in _TABLES.items():
        there = {row["name"] for row in db.execute(f"pragma table_info({table})")}
        for column in there.intersection(columns):
            told = (row[0] for row in db.execute(f"select {column} from {table}"))  # noqa: S608 - names from above
            found += (text if column == "value" else json.dumps(text) for text in told if isinstance(text, str))
    return found

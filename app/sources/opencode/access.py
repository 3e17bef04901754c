"""Reads OpenCode's store without a lock that OpenCode could meet.

It never waits for a read, and it does not fail because of one: OpenCode opens its store without a timeout (1.18.33), so
that it ends with `database is locked` where anybody holds a lock that it asks for at that moment. The first one who
opens a store that was left with a write-ahead log usually takes such a lock. Hence `readonly_shm`, with which SQLite
keeps its index of that log in memory and locks nothing that a start asks for; and where there is no log, a read
without any lock, which is done again if the file was written to meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from app.errors import ExportError

BUSY_S = 2.0
"""How long a read waits for OpenCode, which holds the store exclusively only while it starts or recovers."""
LOG_HEADER_BYTES = 32
"""A log that is not longer holds nothing, and `readonly_shm` waits for one that has only its header (SQLite 3.40.1)."""
TRIES_MAX = 40
"""A read that a start of OpenCode gets in the way of is done again, BUSY_S in all."""
_PASSING = {sqlite3.SQLITE_READONLY_RECOVERY, sqlite3.SQLITE_READONLY_CANTINIT}
"""OpenCode is starting."""
UNTRIED = "OpenCode 2 is read from its public description, not yet tried on it"
IN_MEMORY = ":memory:"
"""No file, as SQLite and OpenCode understand it."""
T = TypeVar("T")


class StoreError(ExportError):
    """There is no store that can be read. The message says what there is instead, and what to do."""


class AbsentError(StoreError):
    """OpenCode has made none yet."""


class InMemoryError(AbsentError):
    """OpenCode keeps it in its own memory."""


class Access:
    """Access to the store in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keeps = False
        self._kept: tuple[object, sqlite3.Connection] | None = None

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep it open for many questions: each opening reads OpenCode's write-ahead log anew, 4 MB and more."""
        outer, self._keeps = self._keeps, True
        try:
            yield
        finally:
            self._keeps = outer
            if not outer:
                self._close()

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Ask a question in one state of the store. Raises StoreError, and what the question raises."""
        try:
            return self._ask(question)
        except OSError as error:
            raise StoreError(f"OpenCode's store {self.path} cannot be read: {error.strerror}") from None

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        for _ in range(TRIES_MAX):
            before = self._look()
            try:
                answer = self._answer(before, question)
            except sqlite3.Error as error:
                # Only what SQLite itself says: Python's own messages may quote the text of a row.
                told = str(error) if hasattr(error, "sqlite_errorcode") else type(error).__name__
                if self._look() == before and getattr(error, "sqlite_errorcode", None) not in _PASSING:
                    break
            else:
                if before.has_log or self._look() == before:
                    return answer
                told = "it is written to all the time"
            time.sleep(BUSY_S / TRIES_MAX)
        message = f"OpenCode's store {self.path} cannot be read: {told}"
        raise StoreError(message)

    def _answer(self, state: _State, question: Callable[[sqlite3.Connection], T]) -> T:
        if self._kept is None or self._kept[0] != state.opened_as:
            self._close()
            self._kept = state.opened_as, self._open(state)
        db = self._kept[1]
        try:
            db.execute("begin")  # one state for all statements of a question
            return question(db)
        finally:
            with suppress(sqlite3.Error):
                db.rollback()
            if not self._keeps:
                self._close()

    def _open(self, state: _State) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro{state.how}"
        db = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
        db.row_factory = sqlite3.Row
        # What is not UTF-8 costs its letters, and no error quotes it.
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        # Nothing that is read is written to a file: SQLite would sort there what is longer than its cache.
        db.execute("pragma temp_store = memory")
        return db

    def _close(self) -> None:
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None

    def _look(self) -> _State:
        """What is there of it now."""
        if self.path.name == IN_MEMORY:
            raise InMemoryError(
                f"OpenCode keeps its sessions in memory (OPENCODE_DB={IN_MEMORY}), where nobody can read them"
            )
        # SQLite, too, looks for these beside what a symbolic link means.
        path = os.path.realpath(self.path) if os.path.islink(self.path) else str(self.path)  # noqa: PTH114 - as below
        beside = ("-wal", "-shm", "-journal")
        found = _stat(path)
        if found is None or not S_ISREG(found.st_mode):
            if not may_be(Path(path), S_ISREG):
                raise AbsentError(f"OpenCode's store {self.path} is not there")
            found = os.stat(path)  # noqa: PTH116 - which says why
        log, index, journal = (_stat(path + ending) for ending in beside)
        return _State(
            file=(found.st_dev, found.st_ino),
            written=(found.st_size, found.st_mtime_ns),
            has_log=log is not None and log.st_size > LOG_HEADER_BYTES,
            has_index=index is not None,
            has_journal=journal is not None and journal.st_size > 0,
        )


def may_be(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether there is one of this kind; also where nobody can tell: whoever reads it learns why."""
    try:
        return is_kind(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - four of them before each question
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class _State:
    file: tuple[int, int]
    written: tuple[int, int]
    """Size and time. They tell nothing of what is in the log."""
    has_log: bool
    has_index: bool
    has_journal: bool

    @property
    def how(self) -> str:
        if self.has_journal:
            return ""  # not as OpenCode keeps it: SQLite says whether it can be read as it is
        if not self.has_log:
            return "&immutable=1"  # nothing is locked, and nothing made beside it
        # A copy that came without its index gets one.
        return "&readonly_shm=1" if self.has_index else ""

    @property
    def opened_as(self) -> object:
        """An open connection sees what is written later to the log, and to nothing else."""
        return (self.file, self.how, None if self.has_log else self.written)

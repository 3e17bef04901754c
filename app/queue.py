"""Wakes the worker through Huey; a message carries a job's key, the job itself is in the ledger.

A wake that is lost, doubled or late is harmless: the poller of every worker looks into the ledger by itself. So
`queue.db` may be deleted at any time, and there is one Huey queue for each destination in it: a worker never takes
away a wake that is meant for another.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from app.runtime.filesystem import private_directory, private_file

_IS_CENTRE = "psycopg" in sys.modules
if not _IS_CENTRE:
    # Huey would load the driver of its other storage wherever the extra `fleet` is installed: 12 MB that no hook needs.
    sys.modules["psycopg"] = None  # type: ignore[assignment]  # which says that it cannot be imported
from huey import SqliteHuey  # noqa: E402 - only now
from huey.registry import Message  # noqa: E402
from huey.serializer import Serializer  # noqa: E402

if not _IS_CENTRE:
    del sys.modules["psycopg"]

WAKES_MAX = 1_000
"""Messages that may wait in the queue. More of them would wake nobody sooner."""

WAKE_AGAIN_S = 15.0
"""After this a wake that nobody here has answered is taken for lost."""

LIVE, HISTORY = 1, 0
"""Huey's priorities: the higher one is taken first."""


class JsonSerializer(Serializer):  # type: ignore[misc]  # huey ships no types
    """A message is a task's name and one key. Nothing read from the file is ever unpickled."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps({"id": data.id, "name": data.name, "args": list(data.args)}).encode()

    def _deserialize(self, data: bytes) -> Any:
        message = json.loads(data)
        return Message(id=str(message["id"]), name=str(message["name"]), args=tuple(message["args"]), kwargs={})


class Queue:
    """One destination's queue in `queue.db` of the spool directory.

    `answer(key)` is called in a worker's thread for each wake; a process that only wakes others gives none.
    """

    def __init__(
        self,
        spool: Path,
        destination_id: int,
        answer: Callable[[str], None] | None = None,
        huey_class: type[SqliteHuey] = SqliteHuey,
    ) -> None:
        self._path = private_directory(spool) / "queue.db"
        self._mending = threading.Lock()
        # Before Huey opens it, which leaves a connection open where the file is no database.
        if not _is_sound(self._path):
            _remove(self._path)
        try:
            self.huey = _queue(self._path, destination_id, huey_class)
        except sqlite3.Error as error:
            if not _is_worthless(error):
                raise
            _remove(self._path)
            self.huey = _queue(self._path, destination_id, huey_class)
        self._file = self._path.stat().st_ino
        self._sound = self._state()

        self._woken_s: dict[str, float] = {}

        def deliver(key: str) -> None:
            self._woken_s.pop(key, None)
            if answer is not None:
                answer(key)

        # The name travels in messages: it stays, whatever module and function are called.
        deliver.__module__ = "app.bell"
        self._task = self.huey.task(name="deliver", retries=0)(deliver)

    def wake(self, key: str, *, is_history: bool = False) -> None:
        """Wake a worker for this key, unless the queue is full already; what is live is answered first.

        A queue that is locked loses the wake, and the job is found by the poller's next tick.
        """
        self._woken_s[key] = time.monotonic()
        with suppress(sqlite3.Error, OSError):
            if not self._is_same_file():
                self.mend()
            try:
                self._put(key, HISTORY if is_history else LIVE)
            except sqlite3.Error:
                if self.mend():
                    self._put(key, HISTORY if is_history else LIVE)

    def _put(self, key: str, priority: int) -> None:
        if self.waiting() < WAKES_MAX:
            self._task(key, priority=priority)

    def _is_same_file(self) -> bool:
        try:
            return self._path.stat().st_ino == self._file
        except FileNotFoundError:
            return False

    def woken(self) -> set[str]:
        """The keys for which somebody was woken here and has not answered yet, as far as is known."""
        since_s = time.monotonic() - WAKE_AGAIN_S
        self._woken_s = {key: woken_s for key, woken_s in self._woken_s.copy().items() if woken_s > since_s}
        return set(self._woken_s)

    def waiting(self) -> int:
        """Wakes that no thread has answered yet. Raises sqlite3.Error."""
        return int(self.huey.pending_count())

    def mend(self) -> bool:
        """Make the queue anew where it is damaged, open it anew where somebody else did so; whether it was so.

        Cheap: the file is small. The threads of a consumer go on with the new one. Raises OSError, sqlite3.Error.
        """
        with self._mending:
            storage = self.huey.storage
            try:
                if self._path.stat().st_ino == self._file:
                    state = self._state()
                    if state == self._sound:
                        return False
                    if _is_sound(self._path):
                        self._sound = state
                        storage.sql("select 1 from task limit 1")
                        return False
                    _remove(self._path)
            except FileNotFoundError:
                pass
            except sqlite3.Error as error:
                if not _is_worthless(error):
                    raise
                _remove(self._path)
            self._file = private_file(self._path).stat().st_ino
            storage.close()
            storage.initialize_schema()
        return True

    def _state(self) -> object:
        """Changes with whatever is written to the file."""
        wal = self._path.with_name(f"{self._path.name}-wal")
        return [(one.st_size, one.st_mtime_ns) for file in (self._path, wal) if file.exists() for one in [file.stat()]]

    def close(self) -> None:
        self.huey.storage.close()


def _queue(path: Path, destination_id: int, huey_class: type[SqliteHuey]) -> SqliteHuey:
    return huey_class(
        name=f"deliver-{destination_id}",
        filename=str(private_file(path)),
        serializer=JsonSerializer(),
        results=False,
        # Nothing waits for the disk: a file that the machine's death damages is made anew.
        fsync=False,
        timeout=2,
    )


def _is_sound(path: Path) -> bool:
    """False for a file that is damaged. Raises sqlite3.Error for one that is locked or out of reach."""
    if not path.exists():
        return True
    try:
        with closing(sqlite3.connect(path, timeout=2)) as db:
            return bool(db.execute("pragma quick_check(1)").fetchone() == ("ok",))
    except sqlite3.Error as error:
        if not _is_worthless(error):
            raise
        return False


def _is_worthless(error: sqlite3.Error) -> bool:
    """Whether the file is damaged, and not only locked, full or out of reach: nothing in it is worth keeping."""
    code = getattr(error, "sqlite_errorcode", 0)
    damage = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
    return code & 0xFF in damage or code == sqlite3.SQLITE_IOERR_SHORT_READ


def _remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink(missing_ok=True)

"""The bell: Huey carries a job's key to a worker that sleeps. It wakes; what there is to do stands in the ledger.

A ring that is lost, doubled or late is harmless: the watch of every worker looks into the ledger by itself. So
`queue.db` may be deleted at any time, and there is one Huey queue for each destination in it: a worker never takes
away a ring that is meant for another.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from app.place import private_directory, private_file

RINGS_MAX = 1_000
"""Messages that may wait in the queue. More rings would wake nobody sooner."""


class JsonSerializer(Serializer):  # type: ignore[misc]  # huey ships no types
    """A message is a task's name and one key. Nothing read from the file is ever unpickled."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps({"id": data.id, "name": data.name, "args": list(data.args)}).encode()

    def _deserialize(self, data: bytes) -> Any:
        message = json.loads(data)
        return Message(id=str(message["id"]), name=str(message["name"]), args=tuple(message["args"]), kwargs={})


class Bell:
    """One destination's queue in `queue.db` of the spool directory.

    `answer(key)` is called in a worker's thread for each ring; a process that only rings gives none.
    """

    def __init__(
        self,
        spool: Path,
        destination_id: int,
        answer: Callable[[str], None] | None = None,
        huey_class: type[SqliteHuey] = SqliteHuey,
    ) -> None:
        try:
            self.huey = _queue(spool, destination_id, huey_class)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            # No database any more, or a damaged one: nothing in it is worth keeping.
            for path in spool.glob("queue.db*"):
                path.unlink(missing_ok=True)
            self.huey = _queue(spool, destination_id, huey_class)

        def deliver(key: str) -> None:
            if answer is not None:
                answer(key)

        # The name travels in messages: it stays, whatever the function is called.
        self._task = self.huey.task(name="deliver", retries=0)(deliver)

    def ring(self, key: str) -> None:
        """Wake a worker for this key, unless the queue is full of rings already.

        A queue that is locked or damaged loses the ring, and the job is found by the next look of the watch.
        """
        with suppress(sqlite3.Error):
            if self.huey.pending_count() < RINGS_MAX:
                self._task(key)

    def close(self) -> None:
        self.huey.storage.close()


def _queue(spool: Path, destination_id: int, huey_class: type[SqliteHuey]) -> SqliteHuey:
    """Raises sqlite3.DatabaseError for a file that is none, sqlite3.OperationalError for one that is locked."""
    return huey_class(
        name=f"deliver-{destination_id}",
        filename=str(private_file(private_directory(spool) / "queue.db")),
        serializer=JsonSerializer(),
        results=False,
        timeout=2,
    )

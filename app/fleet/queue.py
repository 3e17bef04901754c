"""Wakes the workers of all machines through Huey's storage on PostgreSQL; a message names a destination and a job.

As with `app.queue` a wake that is lost, doubled or late is harmless: the leading worker looks into the ledger itself.

Huey's own storage lets each thread listen on a connection of its own, and has each ask once a second: twelve threads of
a hundred processes would be 1,200 connections and as many statements a second, for nothing. Here one connection listens
for the process, and a thread asks when something was rung.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from huey import PostgresHuey, storage
from huey.storage import PostgresStorage

from app.database.postgres import PostgresLedger, connect
from app.queue import HISTORY, LIVE, WAKES_MAX, JsonSerializer

# `app.queue` keeps Huey from loading it.
storage.psycopg = psycopg

READ_S = 1.0
"""How long a thread waits before it looks whether the process is to stop."""
AGAIN_S = 5.0
"""After so long a job is woken for again. Another process may have taken the first wake, of which nobody hears here; so
a retry that is due sooner waits for this."""
WAKES_EACH = 16
"""Of one destination, that find room in a queue which others have filled."""
NAME = "deliver"


class _Storage(PostgresStorage):  # type: ignore[misc]  # huey ships no types
    """One listening connection, and no questions while nothing was rung."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._rung = threading.Condition()
        self._rings = 0
        self._is_empty_at = -1
        """The number of rings after which the queue was found empty."""
        super().__init__(*arguments, **options)

    def ring(self, times: int) -> None:
        """Something was enqueued, here or anywhere: so many threads are to look."""
        with self._rung:
            self._rings += 1
            self._rung.notify(times)

    def dequeue(self) -> bytes | None:
        with self._rung:
            if self._rings == self._is_empty_at and not self._rung.wait(READ_S):
                return None
            rings = self._rings
        try:
            data: bytes | None = self._dequeue()
        except psycopg.Error:  # of which the poller tells; Huey would print a page for each thread, ten times a second
            with self._rung:
                self._rung.wait(READ_S)
            return None
        if data is None:
            with self._rung:
                self._is_empty_at = max(self._is_empty_at, rings)
        return data

    def read_schedule(self, _: object) -> list[bytes]:
        """Nothing is ever scheduled; Huey would ask each second."""
        return []

    def enqueue_all(self, messages: Sequence[tuple[bytes, int]]) -> None:
        """One transaction, and one ring for all of them: each takes a lock of the whole server until its commit."""
        if not messages:
            return
        with self.db(commit=True) as cursor:
            cursor.executemany(
                f"insert into {self.table_task} (queue, data, priority) values (%s, %s, %s)",  # noqa: S608 - Huey's name
                [(self.name, data, priority) for data, priority in messages],
            )
            cursor.execute("select pg_notify(%s, %s)", (self.channel, str(len(messages))))


class _Huey(PostgresHuey):  # type: ignore[misc]  # huey ships no types
    """Keeps the consumer, which `huey_consumer` makes, so that the tasks see when it is told to stop."""

    storage_class = _Storage
    consumer: Any = None
    ended: Callable[[], None]

    def create_consumer(self, **options: Any) -> Any:
        self.consumer = super().create_consumer(**options)
        return self.consumer

    def notify_interrupted_tasks(self) -> None:
        """The last thing that a consumer does, whichever signal it was that ended it."""
        super().notify_interrupted_tasks()
        self.ended()


class CentralQueue:
    """The queue of all destinations of a server. `answer(destination_id, key)` is called in a thread for each wake."""

    def __init__(self, url: str, answer: Callable[[int, str], None] | None = None) -> None:
        self.huey = _Huey(
            name=NAME, connection=lambda: connect(url), serializer=JsonSerializer(), results=False, create_tables=False
        )
        self._storage: _Storage = self.huey.storage
        self._woken_s: dict[tuple[int, str], float] = {}

        def deliver(destination_id: int, key: str) -> None:
            self._woken_s.pop((destination_id, key), None)
            if answer is not None:
                answer(destination_id, key)

        # The name travels in messages: it stays, whatever module and function are called.
        deliver.__module__ = "app.bell"
        self._task = self.huey.task(name="deliver", retries=0)(deliver)

    def make_tables(self, db: PostgresLedger) -> None:
        """Where they are not yet: by the first process of all."""
        with db.transaction():
            db.lock("migrations")
            if db.execute("select to_regclass(?)", (self._storage.table_task,)).fetchone()[0] is None:
                self._storage.initialize_schema()

    def wake(self, jobs: Sequence[tuple[int, str, bool]]) -> None:
        """Wake threads for (destination, key, is it history), after these were committed; what is live goes first.

        Where the server is away or the queue is full the wakes are lost, and the leader's next look finds the jobs.
        """
        if not jobs:
            return
        before = Counter(destination_id for destination_id, _ in self._forget())
        messages: list[tuple[bytes, int, int]] = []
        for destination_id, key, is_history in jobs:
            # The more of a destination were woken, the later comes the next: nobody waits behind all that another has.
            place = before[destination_id]
            before[destination_id] += 1
            priority = (HISTORY if is_history else LIVE) * WAKES_MAX - min(place, WAKES_MAX - 1)
            messages.append((self.huey.serialize_task(self._task.s(destination_id, key)), priority, place))
        now_s = time.monotonic()
        self._woken_s |= {(destination_id, key): now_s for destination_id, key, _ in jobs}
        with suppress(psycopg.Error):
            is_full = self._storage.queue_size() >= WAKES_MAX
            self._storage.enqueue_all([one[:2] for one in messages if not is_full or one[2] < WAKES_EACH])

    def woken(self, destination_id: int) -> set[str]:
        """The keys for which somebody was woken by this process, and which nobody here has answered yet."""
        return {key for destination, key in self._forget() if destination == destination_id}

    def _forget(self) -> list[tuple[int, str]]:
        """Of what was woken here only what is kept: most of it is answered elsewhere, of which nobody hears."""
        since_s = time.monotonic() - AGAIN_S
        kept = []
        for job, woken_s in list(self._woken_s.items()):
            if woken_s > since_s:
                kept.append(job)
            else:
                self._woken_s.pop(job, None)
        return kept

    def look(self) -> None:
        """Ask once without a ring: none is heard while the listening connection is away."""
        self._storage.ring(1)

    def listen(self, db: PostgresLedger, stop: threading.Event) -> None:
        """Hear rings on this connection until `stop` is set. Raises sqlite3.Error where the server goes away."""
        db.listen(self._storage.channel)
        # What was rung before is not heard any more.
        self._storage.ring(1)
        while not stop.is_set():
            ring = db.notification(READ_S)
            if ring is not None:
                self._storage.ring(int(ring) if ring.isdecimal() else 1)

    def close(self) -> None:
        self._storage.close()

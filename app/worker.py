"""The worker process: Huey's consumer around `deliver`, and a watch that looks after what no ring brings.

`huey_consumer app.worker.huey` finds its instance here; it is made when it is asked for, so importing this module
does nothing. `Worker` is the same thing for a caller that has settings already.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.consumer import ConsumerStopped
from huey.signals import SIGNAL_INTERRUPTED

from app import __version__, clock, crashpoint, destination, ledger, log, retry
from app.bell import Bell
from app.db import SchemaError, open_ledger
from app.deliver import Courier, deliver
from app.destination import Destination
from app.endpoint import EndpointError, Route, routes
from app.helicone import Client, ClientError
from app.ledger import Body
from app.presence import Announced, Only, present
from app.retry import Outcome
from app.settings import Recorded, SettingsError
from app.sources import Sources, typed
from app.spool import Spool, target, worker_signature

CONSUMER = {
    "workers": 12,
    "worker_type": "thread",
    "initial_delay": 0.05,
    "max_delay": 0.5,
    "backoff": 1.1,
    "periodic": False,
    "graceful_signal": "TERM",
    "shutdown_timeout": 20,
}
"""What the Procfile's command line says, for the worker that starts without one."""
POST_S_MAX = 30.0
"""For one record in all, whichever routes are tried: well within the lease."""
NOT_FOUND = 404
LOOK_MS = 500
"""How often the watch looks into the ledger at least; `flushInterval` makes it more often when it is shorter."""
PRUNE_MS = 60_000
RINGS_PER_LOOK = 24
IDLE_MS = 3 * 60_000
"""An automatic worker ends when no hook was alive and nothing could be sent for so long."""
BACKOFF_MS_MAX = 10 * 60_000


class _Huey(SqliteHuey):  # type: ignore[misc]  # huey ships no types
    """Keeps the consumer, which `huey_consumer` makes, so that the tasks see when it is told to stop."""

    consumer: Any = None
    prepare: Callable[[], None]

    def create_consumer(self, **options: Any) -> Any:
        self.prepare()
        self.consumer = super().create_consumer(**options)
        return self.consumer


class Worker:
    """One worker process for one spool and one destination."""

    def __init__(self, sources: Sources, *, automatic: bool = False) -> None:
        settings = sources.load()
        self.spool = Spool(settings.spool_directory)
        self.automatic = automatic
        self._local = threading.local()
        self.target: Destination = target(self.db, settings, clock.now_ms())
        # What a plugin brought, for a worker that was started without it.
        recorded = Recorded(self.target.delivery_options, "plugin options, recorded by its hook")
        self.settings = sources.load(recorded)
        self.signature = worker_signature(self.settings)
        self._key = settings.api_key.get_secret_value() if settings.api_key else ""
        self._routes: tuple[Route, ...] = routes(self.settings.endpoint)
        self._route = self.target.route
        self._client = Client(self._key) if self._key else None
        self._announced: Announced | None = None
        self._only = Only(self.spool.automatic_worker(self.target.id))
        self._watching = threading.Lock()
        self._stop = threading.Event()
        self._useful_ms = clock.now_ms()
        self._pruned_ms = 0
        self.bell = Bell(self.spool.path, self.target.id, self._answer, huey_class=_Huey)
        self.huey = self.bell.huey
        self.huey.prepare = self._announce
        self.huey.on_startup(name="watch")(self._start_watch)
        self.huey.signal(SIGNAL_INTERRUPTED)(self._interrupted)

    # --- a thread's own ledger connection

    @property
    def db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = open_ledger(self.spool.path)
        return db

    # --- one ring

    def _answer(self, key: str) -> None:
        if self._client is None or self._announced is None:
            return
        courier = Courier(
            destination_id=self.target.id,
            worker=self._announced.name,
            policy=retry.Policy(
                max_retries=self.settings.max_retries,
                base_ms=self.settings.retry_base_delay_ms,
                cap_ms=BACKOFF_MS_MAX,
            ),
            post=self._post,
            clock=clock.now_ms,
            dice=random.random,
            stopping=self._stopping,
        )
        try:
            following = deliver(self.db, key, courier)
        except sqlite3.Error as error:
            # The lease runs out or is released by the next look; the job is where it was.
            self._log(f"ledger: {error}")
            return
        if following is not None and not self._stopping():
            self.bell.ring(following)

    def _post(self, body: Body) -> Outcome:
        """Try the route that answered last, then the others: the first that knows the path is remembered."""
        assert self._client is not None  # noqa: S101 - `_answer` asked
        outcome: Outcome | None = None
        ends_s = time.monotonic() + POST_S_MAX
        for route in sorted(self._routes, key=lambda route: route.url != self._route):
            left_s = ends_s - time.monotonic()
            outcome = self._client.post(route.url, body.body, str(body.request_id), clock.now_ms(), left_s)
            if outcome.status is not None and outcome.status != NOT_FOUND and route.url != self._route:
                destination.remember_route(self.db, self.target.id, route.url)
                self._route = route.url
            if outcome.status != NOT_FOUND:
                break
        assert outcome is not None  # noqa: S101 - there is always a route
        return outcome

    def _stopping(self) -> bool:
        return self._stop.is_set() or self.huey.consumer.stop_flag.is_set()

    def _interrupted(self, *_: object) -> None:
        """The consumer gives up waiting for its threads: nothing that they hold is charged."""
        if self._announced is not None:
            ledger.give_back_all(self.db, self._announced.name)

    # --- the watch

    def _announce(self) -> None:
        self._announced = Announced(self.spool.workers)
        self._announced.say({"destination": self.target.id, "automatic": self.automatic, "version": __version__})

    def _start_watch(self) -> None:
        """Huey calls this in each of its threads; the first one starts the watch."""
        if self._watching.acquire(blocking=False):
            threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _watch(self) -> None:
        look = self._first_look
        pause_ms = 0
        while not self._stop.wait(pause_ms / 1000):
            try:
                pause_ms = look()
                look = self._look
            except (sqlite3.Error, OSError) as error:
                self._log(f"watch: {error}")
                pause_ms = LOOK_MS
            except Exception as error:  # noqa: BLE001 - a worker whose watch has died looks alive and retries nothing
                place = traceback.extract_tb(error.__traceback__)[-1]
                self._log(f"watch: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}")
                pause_ms = LOOK_MS

    def _first_look(self) -> int:
        """A worker that starts may be the answer to what the destination was paused for: it tries at once."""
        self._log(f"starts: {self.signature}, {'automatic' if self.automatic else 'started by hand'}")
        destination.probe_now(self.db, self.target.id, clock.now_ms())
        ledger.forget_rings(self.db, self.target.id)
        present(self.spool.workers)  # which removes what killed workers left there
        while take_over_keyless(self.db, self.target, clock.now_ms()):
            pass  # it moves a bounded number at a time
        return self._look()

    def _look(self) -> int:
        """Do what is to be done now; the milliseconds until the next look."""
        now_ms = clock.now_ms()
        self._recover(now_ms)
        if self._client is not None:
            for key in ledger.to_ring(self.db, self.target.id, now_ms, RINGS_PER_LOOK):
                crashpoint.reach("watch.ringing")
                self.bell.ring(key)
        if now_ms - self._pruned_ms >= PRUNE_MS or now_ms < self._pruned_ms:
            self._pruned_ms = now_ms
            self._prune(now_ms)
        if self.automatic:
            self._consider_ending(now_ms)
        due_ms = ledger.next_due_ms(self.db, self.target.id, now_ms)
        return max(1, min(LOOK_MS, self.settings.flush_interval_ms, LOOK_MS if due_ms is None else due_ms - now_ms))

    def _recover(self, now_ms: int) -> None:
        leasing = ledger.leasing_workers(self.db)
        alive = {worker.name for worker in present(self.spool.workers)} if leasing else set()
        recovered = ledger.recover(self.db, now_ms, [worker for worker in leasing if worker not in alive])
        if recovered:
            self._log(f"took back {recovered} job(s) of a worker that died or hung")

    def _prune(self, now_ms: int) -> None:
        aged = ledger.drop_aged(self.db, now_ms, self.settings.max_spool_age_ms)
        oversize = ledger.drop_oversize(self.db, now_ms, self.settings.max_spool_bytes)
        ledger.shrink(self.db)
        if aged or oversize:
            self._log(f"dropped {aged} job(s) by age (maxSpoolAge), {oversize} by size (maxSpoolSize)")

    def _consider_ending(self, now_ms: int) -> None:
        """An automatic worker ends when another is wanted, or when nobody needs it any more."""
        wanted = destination.by_id(self.db, self.target.id).worker_wanted
        if wanted not in {"", self.signature}:
            self._log("ends: a worker of another version or with other settings is wanted")
            self._end()
            return
        if present(self.spool.hooks) or ledger.sendable(self.db, self.target.id, now_ms):
            self._useful_ms = now_ms
            return
        if now_ms - self._useful_ms < IDLE_MS:
            return
        self._only.release()
        # Whoever came after the last look found the lock taken and started nobody: look once more without it.
        if ledger.sendable(self.db, self.target.id, clock.now_ms()) and self._only.take():
            self._useful_ms = clock.now_ms()
            return
        self._log("ends: no OpenCode is running and nothing can be sent")
        self._end()

    def _end(self) -> None:
        self._stop.set()
        self.huey.consumer.stop_flag.set()

    def _log(self, message: str) -> None:
        log.append(self.spool.worker_log, message, clock.now_ms())

    # --- the process

    def run(self) -> bool:
        """Consume until told to stop; must be called in the main thread. False when an automatic one runs already."""
        if self.automatic and not self._only.take():
            return False
        try:
            consumer = self.huey.create_consumer(**CONSUMER)
            # Huey would start anew by sys.argv, which loses `-I -m app`; a terminal that closes means the end.
            consumer._signal_actions[signal.SIGHUP] = (False, True)  # noqa: SLF001 - (restart, graceful)
            consumer.run()
        finally:
            self.close()
        return True

    def run_until(self, is_over: Callable[[], bool]) -> bool:
        """Consume until `is_over()`, in the main thread; what is being posted then is waited for.

        False when a signal ended it before.
        """
        consumer = self.huey.create_consumer(**CONSUMER)
        try:
            consumer.start()
            while not is_over():
                consumer.loop()
            consumer.stop(graceful=True)
        except ConsumerStopped:
            return False
        finally:
            self.huey.notify_interrupted_tasks()
            self.close()
        return True

    def close(self) -> None:
        self._stop.set()
        crashpoint.reach("worker.ending")
        self._only.release()
        if self._announced is not None:
            self._announced.withdraw()
        if self._client is not None:
            self._client.close()


def take_over_keyless(db: sqlite3.Connection, ours: Destination, now_ms: int) -> int:
    """Adopt what was captured before any key was known, if it can only be meant for this destination.

    That is so while nothing was captured for another key that it might be meant for as well: a session of one project
    must not end up in the other's Helicone. Then it waits until its project is captured again with a key.
    """
    everyone = destination.destinations(db)
    others = [one for one in everyone if one.key_fingerprint and one.id != ours.id and destination.is_used(db, one.id)]
    moved = 0
    for one in everyone if ours.key_fingerprint else []:
        is_meant = not one.key_fingerprint and one.endpoint in {"", ours.endpoint}
        if is_meant and not any(one.endpoint in {"", other.endpoint} for other in others):
            moved += ledger.adopt(db, one.id, ours.id, now_ms=now_ms)
    return moved


def __getattr__(name: str) -> Any:
    """`huey_consumer app.worker.huey`: the instance for the settings of this process."""
    if name != "huey":
        raise AttributeError(name)
    try:
        return Worker(typed(os.environ, Path.cwd())).huey
    except (SettingsError, EndpointError, ClientError, SchemaError, OSError, sqlite3.Error) as error:
        sys.exit(f"opencode-helicone: {error}")

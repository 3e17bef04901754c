"""Outlet: what a hook has for one destination: its queue, its worker, and what reads OpenCode's store for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

from app.capture import folder_limits
from app.capture.autostart import Autostart, worker_signature
from app.capture.enqueue import Enqueued
from app.capture.eviction import Eviction
from app.capture.owed import Owed
from app.capture.recapture import Recapturer
from app.capture.reconcile import Reconciler
from app.capture.session_reader import Reader
from app.capture.targets import target
from app.database.connection import Ledger
from app.ledger import adoption, confirmations, destinations
from app.ledger.folders import NEVER_MS
from app.privacy.terms import Capture
from app.queue import Queue
from app.runtime import clock
from app.runtime.spool import Spool
from app.settings.model import Settings
from app.settings.views import delivery_record
from app.sources.opencode.store import Store


@dataclass(frozen=True, slots=True)
class Shared:
    """What all outlets of a hook have in common."""

    db: Ledger
    spool: Spool
    store: Store
    owed: Owed
    environ: Mapping[str, str]
    elsewhere: Callable[[], Collection[object]]
    """Tells the sessions that another live OpenCode has open."""
    inherit: Callable[[str, Mapping[str, int]], None]
    """Is given what a dead hook owed inside of a session that our own OpenCode has open."""
    log: Callable[[str], None]
    log_once: Callable[[str], None]


class Outlet:
    """All of it is open, or nothing. Making one raises OSError, sqlite3.Error, SchemaError; methods sqlite3.Error."""

    def __init__(self, settings: Settings, of: Shared) -> None:
        """`settings`: those towards its destination."""
        self.name = settings.destination
        self.settings = settings
        self._is_named = True
        self._of = of
        self.target = target(of.db, settings, clock.now_ms())
        with ExitStack() as opened:
            self.queue = opened.enter_context(closing(Queue(of.spool.path, self.target.id)))
            self.autostart = Autostart(of.spool, self.target.id, self.name, of.environ, of.log)
            opened.callback(self.autostart.release)
            self._opened = opened.pop_all()
        self.reader = Reader(
            of.db,
            of.store,
            self.target.id,
            wake=self.queue.wake,
            elsewhere=of.elsewhere,
            before=self.adopt,
            after=self._enqueued,
            # What was there before it is for a person to bring.
            begun_ms=self.target.begun_ms,
        )
        self.reconciling = Reconciler(
            of.db,
            of.store,
            self.target.id,
            of.owed,
            self.reader,
            elsewhere=of.elsewhere,
            inherit=of.inherit,
            tell=of.log_once,
        )
        self._room = destinations.own_room(self.target)
        self._recapture = Recapturer(of.store.path, self.target.id, of.spool.hooks, self._room)
        self._eviction = Eviction(of.store.path, self._room)

    def close(self) -> None:
        self._opened.close()

    def introduce(self, settings: Settings | None) -> None:
        """Tell the ledger how to deliver, and which worker is wanted; None: no setting names it any more."""
        self._is_named = settings is not None
        if settings is None:
            return
        self.settings = settings
        destinations.remember_delivery_options(self._of.db, self.target.id, delivery_record(settings))
        destinations.want_worker(self._of.db, self.target.id, worker_signature(settings))

    def keep_served(self, now_s: float) -> None:
        """Have one worker run, if that is ours to do. `now_s` is monotonic."""
        is_wanted = self.settings.enable and self.settings.worker == "auto" and self._is_named
        if is_wanted and self.settings.credential:
            self.autostart.look(now_s)

    def adopt(self, session: str) -> None:
        """Move what this session left behind while no key was known to where it goes now."""
        for one in destinations.destinations(self._of.db) if self.target.key_fingerprint else []:
            if not one.key_fingerprint and one.kind == self.target.kind:
                adoption.adopt(self._of.db, one.id, self.target.id, now_ms=clock.now_ms(), session=session)

    def _enqueued(self, session: str, done: Enqueued) -> None:
        if done.faults:
            self._of.log_once(f"odd in {session}: {done.remark}")
        if done.keys:
            self._evict()

    def _evict(self) -> None:
        """Keep the spool within its size also where no worker runs, which would do it."""
        db, now_ms, bytes_max = self._of.db, clock.now_ms(), self.settings.max_spool_bytes
        bytes_max_of = folder_limits.of_folders(db, self.settings, "max_spool_bytes")
        # By age only a worker gives anything up: it knows whether the clock can be trusted.
        confirmations.give_up_confirmations(
            db,
            now_ms,
            bytes_max=bytes_max,
            age_ms_max=NEVER_MS,
            bytes_max_of=bytes_max_of,
            room=self._room,
        )
        made = self._eviction.make(db, now_ms, bytes_max, bytes_max_of)
        if made.evicted or made.dropped:
            self._of.log(made.told)

    def capture_again(self, current: Mapping[str, Capture | None]) -> bool:
        """One session of these folders, as they are captured now; False when there is none.

        First what lost its bodies to a stricter policy, then what waits without its text and needs the secrets that
        are known here, as far as there is room.
        """
        db, folders, now_ms, wake = self._of.db, tuple(current), clock.now_ms(), self.queue.wake
        if self._recapture.step(db, current.get, folders=folders, now_ms=now_ms, wake=wake):
            return True
        own = folder_limits.of_folders(db, self.settings, "max_spool_bytes")
        return self._recapture.refill(
            db,
            current.get,
            folders=folders,
            bytes_max=self.settings.max_spool_bytes // 2,
            bytes_max_of={folder: bytes_max // 2 for folder, bytes_max in own.items()},
            now_ms=now_ms,
            wake=wake,
        )

"""Open spool: holds what a hook has open in one spool, and does what no notice asks for (eviction, recapture)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

from app import __version__
from app.capture import environment, folder_limits
from app.capture.autostart import Autostart, worker_signature
from app.capture.enqueue import Enqueued
from app.capture.eviction import Eviction
from app.capture.keyring import Keyring
from app.capture.notices import Notices
from app.capture.owed import Owed
from app.capture.process_notices import NoticeProcessor
from app.capture.projects import Captures
from app.capture.recapture import Recapturer
from app.capture.reconcile import Reconciler
from app.capture.session_reader import Reader
from app.capture.targets import target
from app.database.open import open_ledger
from app.ledger import adoption, confirmations, destinations
from app.ledger.folders import NEVER_MS
from app.queue import Queue
from app.runtime import clock
from app.runtime.filesystem import identity
from app.runtime.liveness import Announced, open_sessions
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.settings.views import delivery_record
from app.sources.opencode.store import Store, store_file


class OpenSpool:
    """A spool's ledger and queue, the present settings' destination there, and what reads OpenCode's store into it.

    All of it is open, or nothing. Making one raises PlaceError, OSError, sqlite3.Error, SchemaError; methods raise
    sqlite3.Error.
    """

    def __init__(
        self,
        sources: Sources,
        keyring: Keyring,
        settings: Settings,
        notices: Notices,
        *,
        log: Callable[[str], None],
        log_once: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.spool = Spool(settings.spool_directory)
        self._log = log
        self._log_once = log_once
        with ExitStack() as opened:
            self.db = opened.enter_context(closing(open_ledger(self.spool.path)))
            self._file = identity(self.spool.path / "ledger.db")
            self.target = target(self.db, settings, clock.now_ms())
            self.queue = opened.enter_context(closing(Queue(self.spool.path, self.target.id)))
            self.autostart = Autostart(self.spool, self.target.id, sources.environ, log)
            opened.callback(self.autostart.release)
            self._announced = Announced(self.spool.hooks)
            opened.callback(self._announced.withdraw)
            self._environment = environment.fingerprints(self.db, sources.environ)
            self.store = Store(store_file(sources.environ))
            self.owed = Owed(self.db, destinations.fingerprint(self.db, str(self.store.path)))
            self._opened = opened.pop_all()
        self.reader = Reader(
            self.db,
            self.store,
            self.target.id,
            wake=self.queue.wake,
            elsewhere=self._elsewhere,
            before=self.adopt,
            after=self._enqueued,
        )
        self.reconciling = Reconciler(
            self.db,
            self.store,
            self.target.id,
            self.owed,
            self.reader,
            elsewhere=self._elsewhere,
            inherit=notices.inherit,
            tell=log_once,
        )
        self.captures = Captures(sources, keyring, self.db, self.target, self.reconciling.begin, log)
        self.notice_processor = NoticeProcessor(self.store, self.captures, notices, self.owed, self.reader, log_once)
        self._recapture = Recapturer(self.store.path, self.target.id, self.spool.hooks)
        self._eviction = Eviction(self.store.path)

    def close(self) -> None:
        self._opened.close()

    @property
    def is_there(self) -> bool:
        """Whether its ledger is still the one of the spool: not when the spool was removed or replaced."""
        return identity(self.spool.path / "ledger.db") == self._file

    def introduce(self) -> None:
        """Tell the ledger how to deliver, and which worker is wanted."""
        destinations.remember_delivery_options(self.db, self.target.id, delivery_record(self.settings))
        destinations.want_worker(self.db, self.target.id, worker_signature(self.settings))

    def announce(self, sessions: list[str], backlog: int) -> None:
        """Tell other processes which sessions this OpenCode has open, and how much is not worked off."""
        facts = {"destination": self.target.id, "sessions": sessions, "backlog": backlog}
        self._announced.say({**facts, "version": __version__, "environment": self._environment})

    def _elsewhere(self) -> set[object]:
        """The sessions that another live OpenCode has open."""
        return open_sessions(self.spool.hooks, but=self._announced.name)

    def adopt(self, session: str) -> None:
        """Move what this session left behind while no key was known to where it goes now."""
        for one in destinations.destinations(self.db) if self.target.key_fingerprint else []:
            if not one.key_fingerprint:
                adoption.adopt(self.db, one.id, self.target.id, now_ms=clock.now_ms(), session=session)

    def _enqueued(self, session: str, done: Enqueued) -> None:
        if done.faults:
            self._log_once(f"odd in {session}: {done.remark}")
        if done.keys:
            self._evict()

    def _evict(self) -> None:
        """Keep the spool within its size also where no worker runs, which would do it."""
        now_ms, bytes_max = clock.now_ms(), self.settings.max_spool_bytes
        bytes_max_of = folder_limits.of_folders(self.db, self.settings, "max_spool_bytes")
        # By age only a worker gives anything up: it knows whether the clock can be trusted.
        confirmations.give_up_confirmations(
            self.db, now_ms, bytes_max=bytes_max, age_ms_max=NEVER_MS, bytes_max_of=bytes_max_of
        )
        made = self._eviction.make(self.db, now_ms, bytes_max, bytes_max_of)
        if made.evicted or made.dropped:
            self._log(made.told)

    def capture_again(self) -> bool:
        """One session of the folders that this OpenCode has open; False when there is none.

        First what lost its bodies to a stricter policy, then what waits without its text and needs the secrets that
        are known here, as far as there is room.
        """
        current = self.captures.by_folder()
        folders, now_ms, wake = tuple(current), clock.now_ms(), self.queue.wake
        if self._recapture.step(self.db, current.get, folders=folders, now_ms=now_ms, wake=wake):
            return True
        own = folder_limits.of_folders(self.db, self.settings, "max_spool_bytes")
        return self._recapture.refill(
            self.db,
            current.get,
            folders=folders,
            bytes_max=self.settings.max_spool_bytes // 2,
            bytes_max_of={folder: bytes_max // 2 for folder, bytes_max in own.items()},
            now_ms=now_ms,
            wake=wake,
        )

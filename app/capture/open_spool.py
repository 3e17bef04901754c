"""Open spool: holds what a hook has open in one spool: its ledger, and an outlet for each destination."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

from app import __version__
from app.capture import environment
from app.capture.keyring import Keyring
from app.capture.notices import Notices
from app.capture.outlet import Outlet, Shared
from app.capture.owed import Owed
from app.capture.process_notices import NoticeProcessor
from app.capture.projects import Captures
from app.database.open import open_ledger
from app.ledger import destinations
from app.runtime.filesystem import identity
from app.runtime.liveness import Announced, open_sessions
from app.runtime.spool import Spool
from app.settings.destinations import others
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.sources.opencode.store import Store, store_file


class OpenSpool:
    """A spool's ledger, the present settings' destinations there, and what reads OpenCode's store into it for each.

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
        with ExitStack() as opened:
            self.db = opened.enter_context(closing(open_ledger(self.spool.path)))
            self._file = identity(self.spool.path / "ledger.db")
            self._announced = Announced(self.spool.hooks)
            opened.callback(self._announced.withdraw)
            self._environment = environment.fingerprints(self.db, sources.environ)
            self.store = Store(store_file(sources.environ))
            self.owed = Owed(self.db, destinations.fingerprint(self.db, str(self.store.path)))
            shared = Shared(
                self.db,
                self.spool,
                self.store,
                self.owed,
                sources.environ,
                self._elsewhere,
                notices.inherit,
                log,
                log_once,
            )
            self.outlets: list[Outlet] = []
            for towards in (settings, *others(settings)):
                self.outlets.append(opened.enter_context(closing(Outlet(towards, shared))))
            destinations.keep_names(self.db, [*settings.destinations])
            self._opened = opened.pop_all()
        self.main = self.outlets[0]
        self.target, self.reader, self.reconciling = self.main.target, self.main.reader, self.main.reconciling
        self.captures = Captures(sources.watching(settings), keyring, self.db, self.target, self._begin, log)
        readers = {one.name: one.reader for one in self.outlets}
        self.notice_processor = NoticeProcessor(self.store, self.captures, notices, self.owed, readers, log_once)

    def close(self) -> None:
        self._opened.close()

    @property
    def is_there(self) -> bool:
        """Whether its ledger is still the one of the spool: not when the spool was removed or replaced."""
        return identity(self.spool.path / "ledger.db") == self._file

    def introduce(self, settings: Settings | None = None) -> None:
        """Tell the ledger how to deliver, and which workers are wanted; by other settings from now on."""
        self.settings = settings or self.settings
        towards = {one.destination: one for one in (self.settings, *others(self.settings))}
        for outlet in self.outlets:
            outlet.introduce(towards.get(outlet.name))

    def announce(self, sessions: list[str], backlog: int) -> None:
        """Tell other processes which sessions this OpenCode has open, and how much is not worked off."""
        facts = {"destination": self.target.id, "sessions": sessions, "backlog": backlog}
        self._announced.say({**facts, "version": __version__, "environment": self._environment})

    def _elsewhere(self) -> set[object]:
        """The sessions that another live OpenCode has open."""
        return open_sessions(self.spool.hooks, but=self._announced.name)

    def _begin(self, directory: str, folder: str) -> None:
        """Capture of a folder begins: what no notice led to is looked for."""
        for outlet in self.outlets:
            outlet.reconciling.begin(directory, folder)

    def to_reconcile(self, now_s: float) -> Outlet | None:
        """For which destination a session, or a folder, is to be compared next."""
        return next((outlet for outlet in self.outlets if outlet.reconciling.is_due(now_s)), None)

    def capture_again(self) -> bool:
        """One session of the folders that this OpenCode has open, for one destination; False when there is none."""
        return any(outlet.capture_again(self.captures.by_folder(outlet.name)) for outlet in self.outlets)

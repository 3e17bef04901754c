"""What a hook does with the plugin's notices: it reads OpenCode's store, turns become jobs, and a worker sends them.

`daemon` is the process around it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Collection
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

from app import __version__
from app.capture import environment, folder_limits
from app.capture.autostart import Starting, worker_signature
from app.capture.enqueue import Enqueued, Place, Request, enqueue
from app.capture.eviction import Room
from app.capture.keyring import Keyring
from app.capture.messages import Line, LineError
from app.capture.notices import Notices, bound
from app.capture.pipe_reader import CUT_OFF, TOO_LONG
from app.capture.process_notices import Looking
from app.capture.projects import Captures
from app.capture.recapture import Remaking
from app.capture.reconcile import Reconciling
from app.capture.session_reader import Reader
from app.capture.targets import folder, target
from app.database import recover
from app.database.connection import flushed_together
from app.database.open import heal, open_ledger
from app.database.schema import require_known
from app.ledger import adoption, confirmations, counts, destinations, folders, history, incidents, pruning
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.queue import Bell
from app.runtime import clock, log
from app.runtime.filesystem import identity
from app.runtime.liveness import Announced, open_sessions
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings, SettingsError
from app.settings.views import delivery_record
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store, store_file
from app.transcript.model import Transcript

CARE_S = 2.0
"""How often the hook looks whether its worker lives."""


class Hook:
    """One spool of this OpenCode: its ledger, where its jobs go, its sessions, and what is to be read of them."""

    def __init__(self, sources: Sources, first: Line, settings: Settings) -> None:
        self._sources = sources
        self._keyring = Keyring(sources.environ)
        self.spool = Spool(settings.spool_directory)
        self._first = Line("notice", first.directory, first.options, "", "busy")
        self._notices = Notices()
        self._deleted: dict[str, Line] = {}
        """By session, each with what said so; the newest at the end."""
        self._has_ended = False
        self._left: tuple[set[str], Reader] | None = None
        """Jobs that waited in a spool that is gone, and what was read for it, until the new one knows."""
        self._told: dict[str, None] = {}
        """What the log already says: each look at a session shows its odd values again."""
        self._settings = settings
        log.carry_warnings(self.spool.hook_log)
        self._settle()
        self._cared_s = 0.0
        self._catch_up_s = 0.0
        self._may_capture_again = False

    def _settle(self) -> None:
        """Open what is in the spool, all of it or nothing. Raises PlaceError, OSError, sqlite3.Error, SchemaError."""
        with ExitStack() as stack:
            db = stack.enter_context(closing(open_ledger(self.spool.path)))
            opened = identity(self.spool.path / "ledger.db")
            ours = target(db, self._settings, clock.now_ms())
            bell = stack.enter_context(closing(Bell(self.spool.path, ours.id)))
            starting = Starting(self.spool, ours.id, self._sources.environ, self.log)
            self._announced = Announced(self.spool.hooks)
            stack.pop_all()  # `close` does it from here on
        self.db, self._ledger_file, self.target, self.bell, self._starting = db, opened, ours, bell, starting
        self._environment = environment.fingerprints(db, self._sources.environ)
        stored = store_file(self._sources.environ)
        self._remaking = Remaking(stored, ours.id, self.spool.hooks)
        self._store = Store(stored)
        self._captures = Captures(self._sources, self._keyring, db, ours, self._begin, self.log)
        self._looking = Looking(
            db,
            self._store,
            ours.id,
            self._captures,
            self._notices,
            elsewhere=self._elsewhere,
            take=self._take_turns,
            tell=self._tell_once,
        )
        self._reconciling = Reconciling(
            self._store,
            self._looking.store_name,
            self._looking.reader,
            ours.id,
            elsewhere=self._elsewhere,
            inherit=self._looking.inherit,
            tell=self._tell_once,
        )
        self._room = Room(stored)

    def _begin(self, directory: str, of: str) -> None:
        """Capture of a folder begins."""
        self._reconciling.begin(directory, of)

    def _settle_anew(self) -> None:
        """Where the spool was removed or replaced: go on in the one that is there now, made if need be.

        What waited in the old one is not brought over: whoever removes a spool wants what is in it gone.
        """
        if identity(self.spool.path / "ledger.db") != self._ledger_file:
            held: set[str] = set()
            with suppress(sqlite3.Error):  # its files have no name any more, and can be read as long as they are open
                held = counts.pending_keys(self.db)
            old, reader = (self.db, self.bell, self._announced, self._starting), self._looking.reader
            self._settle()
            with suppress(sqlite3.Error, OSError):
                _close(*old)
            self._left = held, reader
        if self._left is not None:
            self._begin_anew()
            self._leave_behind(*self._left)
            self._left = None

    def _leave_behind(self, held: set[str], reader: Reader) -> None:
        if any(what.startswith("ledger: ") for what, _, _ in incidents.incidents(self.db)):
            self.log("the ledger was damaged, and another process has recovered it; `status` says what is lost")
            return
        lost = len(held - counts.pending_keys(self.db))
        if lost:
            incidents.note(self.db, "jobs lost with a spool that was removed", clock.now_ms(), lost)
        self._looking.reader.go_on_from(reader)
        self.log(f"the spool was removed or replaced: {lost} job(s) that waited in it are lost; going on in a new one")

    def take(self, line: Line) -> None:
        """Do what a line says. Raises LineError for one that cannot be used, sqlite3.Error to be tried again.

        Raises SchemaError when another program has made the ledger newer: nothing is written to it then.
        """
        self._settle_anew()
        require_known(self.db)
        match line.type:
            case "notice" if line.why == "deleted":
                self._delete(line)
            case "notice":
                self._notice(line)
            case "refused" if line.session:
                self._notice(replace(line, why="idle"))  # a turn that was too long for the plugin is none for us
            case "refused":
                # Said by the hook that this process was before. (It may be anything: no set.)
                raise LineError(str(line.reason) if line.reason in (TOO_LONG, CUT_OFF) else "unknown")
            case "trouble":
                log.append(self.spool.plugin_log, plain(line.reason), clock.now_ms())

    def _notice(self, line: Line) -> None:
        """Something of a session is new: note that as owed, and look at it when no line waits."""
        if line.session in self._deleted:
            if not self._is_stored(line.session):
                return  # it was on its way when the session was deleted
            del self._deleted[line.session]  # it was imported again
        try:
            self._captures.take(line)
        except (SettingsError, PatternError):
            self._owe(line)
            raise
        seen = self._captures.seen(line.directory)
        if seen is None or not seen.settings.enable:
            return  # noted for a worker that still runs; the other folders go on
        if seen.settings is not self._settings or line.session not in self._notices:
            self._settings = seen.settings
            self._introduce()
        self._owe(line)
        self.care()

    def _is_stored(self, session: str) -> bool:
        with suppress(StoreError):
            return self._store.root_of(session) is not None
        return False

    def _owe(self, line: Line) -> None:
        if line.session:  # else a hook that took over was told of the folder alone
            self._looking.owe(line, clock.now_ms())

    def _begin_anew(self) -> None:
        """In another ledger than before, which knows neither of this hook nor of what is owed."""
        self._introduce()
        self._looking.owe_again(clock.now_ms())

    def _delete(self, line: Line) -> None:
        self._looking.forget(line.session, clock.now_ms())
        self._deleted.pop(line.session, None)
        self._deleted[line.session] = line
        bound(self._deleted)
        self._adopt(line.session)
        dropped = pruning.drop_session(self.db, self.target.id, line.session, clock.now_ms())
        for left in recover.forget_copies(self.spool.path / "ledger.db").values():
            self.log(left)
        if dropped:
            self.log(f"dropped {dropped} undelivered job(s) of a session deleted in OpenCode")
            # A fork of it may show the same turns, which were left to their origin until now.
            of = folder(self.db, line.directory)
            history.compare_again(self.db, of)
            self._looking.reader.forget()
            self._reconciling.begin(line.directory, of)

    def resume(self, line: Line, since_ms: int) -> None:
        """The settings of a folder can be used again, after they could not since then. Raises as `take`."""
        require_known(self.db)
        self._captures.take(line)
        folders.capture_from(self.db, folder(self.db, line.directory), since_ms)

    def _introduce(self) -> None:
        """Tell the ledger how to deliver, and which worker is wanted."""
        destinations.remember_delivery_options(self.db, self.target.id, delivery_record(self._settings))
        destinations.want_worker(self.db, self.target.id, worker_signature(self._settings))

    def _tell(self, session: str, done: Enqueued) -> None:
        """What of a session was odd: places and rules, no text."""
        if done.faults:
            self._tell_once(f"odd in {session}: {done.remark}")

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told[message] = None
            bound(self._told)
            self.log(message)

    def _adopt(self, session: str) -> None:
        """What this session left behind while no key was known goes where it goes now."""
        for one in destinations.destinations(self.db) if self.target.key_fingerprint else []:
            if not one.key_fingerprint:
                adoption.adopt(self.db, one.id, self.target.id, now_ms=clock.now_ms(), session=session)

    def _bound(self) -> None:
        """Keep the spool within its size also where no worker runs, which would do it."""
        now_ms, bytes_max = clock.now_ms(), self._settings.max_spool_bytes
        bytes_max_of = folder_limits.of_folders(self.db, self._settings, "max_spool_bytes")
        # By age only a worker gives anything up: it knows whether the clock can be trusted.
        confirmations.give_up_confirmations(
            self.db, now_ms, bytes_max=bytes_max, age_ms_max=folders.NEVER_MS, bytes_max_of=bytes_max_of
        )
        made = self._room.make(self.db, now_ms, bytes_max, bytes_max_of)
        if made.emptied or made.dropped:
            self.log(made.told)

    def _capture_again(self) -> bool:
        """One session of the folders that this OpenCode has open; False when there is none.

        First what lost its bodies to a stricter policy, then what waits without its text and needs the secrets that
        are known here, as far as there is room.
        """
        current = self._captures.by_folder()
        folders, now_ms, ring = tuple(current), clock.now_ms(), self.bell.ring
        if self._remaking.step(self.db, current.get, folders=folders, now_ms=now_ms, ring=ring):
            return True
        own = folder_limits.of_folders(self.db, self._settings, "max_spool_bytes")
        return self._remaking.refill(
            self.db,
            current.get,
            folders=folders,
            bytes_max=self._settings.max_spool_bytes // 2,
            bytes_max_of={folder: bytes_max // 2 for folder, bytes_max in own.items()},
            now_ms=now_ms,
            ring=ring,
        )

    def _elsewhere(self) -> set[object]:
        """The sessions that another live OpenCode has open."""
        return open_sessions(self.spool.hooks, but=self._announced.name)

    def _take_turns(
        self, transcript: Transcript, capture: Capture, place: Place, *, only: Collection[str], abandoned: bool
    ) -> Enqueued:
        """Some turns of a session out of OpenCode's store."""
        self._adopt(transcript.session.id)
        now_ms, ring = clock.now_ms(), self.bell.ring
        request = Request(only=only, abandoned=abandoned)
        with flushed_together(self.db):
            done = enqueue(self.db, transcript, capture, place, now_ms=now_ms, ring=ring, request=request)
        self._tell(transcript.session.id, done)
        if done.keys:
            self._bound()
        return done

    def finish(self) -> None:
        """OpenCode has ended: what still waits is interrupted, unless another OpenCode has the session open."""
        self._settle_anew()
        require_known(self.db)
        self._captures.refresh()
        self._has_ended = True
        # Before the last look: of two that end together the later one sees that nobody has the session open.
        self.announce(1)  # until it is done
        now_s = time.monotonic()
        self._looking.end(now_s)
        with self._store.kept_open():
            while not self._looking.is_given_up and (one := self._notices.next(now_s)) is not None:
                self._looking.look(one, now_s, clock.now_ms())

    def finish_reconciling(self) -> None:
        """The other sessions of its folders, as far as it has not come to them while OpenCode lived."""
        require_known(self.db)
        now_s, now_ms = time.monotonic(), clock.now_ms()
        with self._store.kept_open():
            self._reconciling.last_looks(self.db, self._captures.of, now_s=now_s, now_ms=now_ms)

    @property
    def worker_pid(self) -> int | None:
        """The worker that it started, as far as it has not ended."""
        return self._starting.pid

    def estate(self) -> list[Line]:
        """Lines that make another hook know what this one knows and the ledger does not."""
        return [self._first, *(one.line for one in self._notices), *self._deleted.values()]

    # --- beside the lines

    def heal(self, error: Exception) -> None:
        """After a failed statement: where the ledger was damaged and is recovered, go on with the new one."""
        if heal(self.db, error):
            old = self.db, self.bell, self._announced, self._starting
            self._settle()  # the new ledger may know the destination by another number, and nothing of its folders
            with suppress(sqlite3.Error, OSError):
                _close(*old)
            self._begin_anew()
            self.log("the ledger was damaged and is recovered; `opencode-helicone status` says what is lost")

    def announce(self, backlog: int) -> None:
        owned = [] if self._has_ended else self._notices.owned()
        facts = {"destination": self.target.id, "sessions": owned, "backlog": backlog + len(self._notices)}
        self._announced.say({**facts, "version": __version__, "environment": self._environment})

    def care(self) -> None:
        """Make sure that one worker runs, if that is ours to do. Cheap: looks every CARE_S at the most."""
        self._starting.reap()
        if time.monotonic() - self._cared_s < CARE_S:
            return
        self._cared_s = time.monotonic()
        self._captures.refresh()
        self._may_capture_again = True
        settings = self._settings
        if settings.enable and settings.worker == "auto" and settings.api_key is not None:
            self._starting.look(self._cared_s)

    def due_s(self) -> float:
        """How long until `catch_up` may have something to do."""
        now_s = time.monotonic()
        if self._may_capture_again or self._reconciling.is_due(now_s):
            return max(0.0, self._catch_up_s - now_s)
        due_s = self._notices.due_s()
        return CARE_S if due_s is None else max(0.0, due_s - now_s, self._catch_up_s - now_s)

    def catch_up(self) -> None:
        """One session out of OpenCode's store: read, captured again, or compared.

        Only one, so that a line never waits for longer than that. Raises sqlite3.Error, OSError, SchemaError.
        """
        now_s, now_ms = time.monotonic(), clock.now_ms()
        self._catch_up_s = now_s + CARE_S  # should it fail
        self._settle_anew()
        require_known(self.db)
        noticed = self._notices.next(now_s)
        if noticed is not None:
            self._looking.look(noticed, now_s, now_ms)
        elif self._may_capture_again:
            self._may_capture_again = self._capture_again()
        elif self._reconciling.is_due(now_s):
            ours = {*self._notices.owned(), *self._deleted}
            self._reconciling.step(self.db, self._captures.of, ours, now_s=now_s, now_ms=now_ms)
        self._catch_up_s = now_s

    @property
    def acknowledged(self) -> int | None:
        """Every line before this one was looked for; None where all were."""
        return self._notices.acknowledged()

    def log(self, message: str) -> None:
        log.append(self.spool.hook_log, message, clock.now_ms())

    def close(self) -> None:
        _close(self.db, self.bell, self._announced, self._starting)


def plain(said: object) -> str:
    """What the plugin says went wrong, if it is one of its own short sentences."""
    is_plain = isinstance(said, str) and re.fullmatch(r"[\w .:,-]{1,200}", said, re.ASCII)
    return str(said) if is_plain else "trouble that cannot be told"


def _close(db: sqlite3.Connection, bell: Bell, announced: Announced, starting: Starting) -> None:
    announced.withdraw()
    starting.release()
    bell.close()
    db.close()

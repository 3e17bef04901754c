"""What a hook does with the plugin's lines: snapshots become jobs, and a worker is there to send them.

`desk` is the process around it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Collection
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace

from app import __version__, clock, destination, ledger, limits, log, salvage
from app.bell import Bell
from app.capturing import Captures
from app.db import heal, open_ledger
from app.enqueue import Enqueued, Place, enqueue
from app.export import Capture
from app.inbox import CUT_OFF, TOO_LONG, Line, LineError, read_line
from app.keyring import Keyring
from app.opencode import Store, store_file
from app.parse import parse
from app.place import identity
from app.presence import Announced, open_sessions
from app.reconcile import Reconciling
from app.remake import Remaking
from app.room import Room
from app.schema import require_known
from app.settings import Settings, delivery_record
from app.sources import Sources
from app.spool import Spool, folder, target, worker_signature
from app.starting import Starting
from app.transcript import Transcript, TranscriptError

CARE_S = 2.0
"""How often the hook looks whether its worker lives."""


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """Turns of a session that were not final, and where they are to go should nobody complete them."""

    transcript: Transcript
    place: Place
    lines: tuple[bytes, ...]
    """The snapshots that told of them, as they came."""


class Hook:
    """One spool of this OpenCode: its ledger, where its jobs go, its sessions, and the turns that wait."""

    def __init__(self, sources: Sources, first: Line, settings: Settings) -> None:
        self._sources = sources
        self._keyring = Keyring(sources.environ)
        self.spool = Spool(settings.spool_directory)
        self._first = first.as_open()
        self._sessions: dict[str, bytes] = {}
        """Those that live here, each with the line that opens it; in the order of the last time."""
        self._unfinished: dict[str, _Unfinished] = {}
        self._deleted: dict[str, bytes] = {}
        self._missed: dict[str, str] = {}
        """Sessions with their directories of which something came while it could not be captured."""
        self._told: set[str] = set()
        """What the log already says of odd values: each snapshot shows them again."""
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
        stored = store_file(self._sources.environ)
        self._remaking = Remaking(stored, ours.id, self.spool.hooks)
        self._store = Store(stored)
        self._reconciling = Reconciling(
            self._store, ours.id, elsewhere=self._elsewhere, take=self._take_stored, tell=self.log
        )
        self._room = Room(stored)
        self._captures = Captures(self._sources, self._keyring, db, ours, self._reconciling.begin, self.log)

    def _settle_anew(self) -> None:
        """Where the spool was removed or replaced: go on in the one that is there now, made if need be.

        What waited in the old one is not brought over: whoever removes a spool wants what is in it gone.
        """
        if identity(self.spool.path / "ledger.db") == self._ledger_file:
            return
        held: set[str] = set()
        with suppress(sqlite3.Error):  # its files have no name any more, and can be read as long as they are open
            held = ledger.pending_keys(self.db)
        old = self.db, self.bell, self._announced, self._starting
        self._settle()
        with suppress(sqlite3.Error, OSError):
            _close(*old)
        self._introduce()
        if any(what.startswith("ledger: ") for what, _, _ in destination.incidents(self.db)):
            self.log("the ledger was damaged, and another process has recovered it; `status` says what is lost")
            return
        lost = len(held - ledger.pending_keys(self.db))
        self.log(f"the spool was removed or replaced: {lost} job(s) that waited in it are lost; going on in a new one")
        if lost:
            destination.note(self.db, "jobs lost with a spool that was removed", clock.now_ms(), lost)

    def take(self, line: Line) -> None:
        """Do what a line says. Raises LineError for one that cannot be used, sqlite3.Error to be tried again.

        Raises SchemaError when another program has made the ledger newer: nothing is written to it then.
        """
        self._settle_anew()
        require_known(self.db)
        match line.type:
            case "open":
                self._open(line)
            case "snapshot":
                self._snapshot(line)
            case "deleted":
                self._unfinished.pop(line.session, None)
                self._deleted[line.session] = line.raw
                self._adopt(line.session)
                dropped = ledger.drop_session(self.db, self.target.id, line.session, clock.now_ms())
                for left in salvage.forget_copies(self.spool.path / "ledger.db").values():
                    self.log(left)
                if dropped:
                    self.log(f"dropped {dropped} undelivered job(s) of a session deleted in OpenCode")
                    # A fork of it may show the same turns, which were left to their origin until now.
                    of = folder(self.db, line.directory)
                    ledger.compare_again(self.db, of)
                    self._reconciling.begin(line.directory, of)
            case "refused":
                reason = line.message.get("reason")
                # The first two were said by the hook that this process was before. (It may be anything: no set.)
                known = reason in (TOO_LONG, CUT_OFF)
                raise LineError(
                    str(reason) if known else f"by the plugin: {reason if reason == 'too large' else 'unknown'}"
                )
            case "trouble":
                log.append(self.spool.plugin_log, plain(line.message.get("reason")), clock.now_ms())
            case _:
                raise LineError("unknown type")

    def _open(self, line: Line) -> None:
        self._capture_of(line)
        settings = self._sources.load(line.directory or None, handed=line.options)
        if not settings.enable:
            return  # noted for a worker that still runs; the other folders go on
        self._sessions.pop(line.session, None)
        self._sessions[line.session] = line.raw
        self._settings = settings
        self._introduce()
        self.care()

    def _capture_of(self, line: Line) -> Capture | None:
        """As `Captures.take`; what this line tells of is taken from OpenCode's store when it can be captured again."""
        capturing = None
        try:
            capturing = self._captures.take(line)
        finally:
            if capturing is None and line.session:
                self._missed[line.session] = line.directory
        return capturing

    def resume(self, line: Line, since_ms: int) -> None:
        """The settings of a folder can be used again, after they could not since then. Raises as `take`."""
        require_known(self.db)
        self._captures.take(line)
        destination.capture_from(self.db, folder(self.db, line.directory), since_ms)

    def _introduce(self) -> None:
        """Tell the ledger how to deliver, and which worker is wanted."""
        destination.remember_delivery_options(self.db, self.target.id, delivery_record(self._settings))
        destination.want_worker(self.db, self.target.id, worker_signature(self._settings))

    def _snapshot(self, line: Line) -> None:
        capturing = self._capture_of(line)
        if capturing is None:
            return
        try:
            transcript = parse(line.message)  # type: ignore[arg-type]  # JSON, as read
        except TranscriptError as error:
            self.log(f"snapshot: {error}")
            raise LineError("snapshot that cannot be read") from None
        session = transcript.session.id
        if session in self._deleted:
            return  # it was on its way when the session was deleted
        self._sessions.setdefault(session, line.as_open())
        self._adopt(session)
        place = Place(self.target.id, folder(self.db, line.directory))
        whole = self._with_unfinished(transcript)
        done = enqueue(self.db, whole, capturing, place, now_ms=clock.now_ms(), ring=self.bell.ring)
        self._tell(session, done)
        self._reconciling.look_below(session, place)
        before = self._unfinished.pop(session, None)
        if done.keys:
            self._bound()
        if done.waiting:
            left = replace(whole, turns=tuple(done.waiting))
            brought = {turn.id for turn in transcript.turns}
            still = before is not None and any(turn.id not in brought for turn in left.turns)
            lines = (*(before.lines if before is not None and still else ()), line.raw)
            self._unfinished[session] = _Unfinished(left, place, lines)

    def _tell(self, session: str, done: Enqueued) -> None:
        """What of a session was odd: places and rules, no text."""
        told = f"odd in {session}: {done.remark}"
        if done.faults and told not in self._told:
            self._told.add(told)
            self.log(told)

    def _adopt(self, session: str) -> None:
        """What this session left behind while no key was known goes where it goes now."""
        for one in destination.destinations(self.db) if self.target.key_fingerprint else []:
            if not one.key_fingerprint:
                ledger.adopt(self.db, one.id, self.target.id, now_ms=clock.now_ms(), session=session)

    def _bound(self) -> None:
        """Keep the spool within its size also where no worker runs, which would do it."""
        now_ms, bytes_max = clock.now_ms(), self._settings.max_spool_bytes
        bytes_max_of = limits.of_folders(self.db, self._settings, "max_spool_bytes")
        # By age only a worker gives anything up: it knows whether the clock can be trusted.
        ledger.give_up_confirmations(
            self.db, now_ms, bytes_max=bytes_max, age_ms_max=destination.NEVER_MS, bytes_max_of=bytes_max_of
        )
        made = self._room.make(self.db, now_ms, bytes_max, bytes_max_of)
        if made.emptied or made.dropped:
            self.log(made.told)

    def _with_unfinished(self, transcript: Transcript) -> Transcript:
        """The snapshot's turns and those that waited and that it does not bring again, in order."""
        unfinished = self._unfinished.get(transcript.session.id)
        if unfinished is None:
            return transcript
        brought = {turn.id for turn in transcript.turns}
        waited = [turn for turn in unfinished.transcript.turns if turn.id not in brought]
        turns = sorted((*waited, *transcript.turns), key=lambda turn: turn.messages[0].index)
        return replace(transcript, turns=tuple(turns))

    def _capture_again(self) -> bool:
        """One session of the folders that this OpenCode has open; False when there is none.

        First what lost its bodies to a stricter policy, then what waits without its text and needs the secrets that
        are known here, as far as there is room.
        """
        current = self._captures.by_folder()
        folders, now_ms, ring = tuple(current), clock.now_ms(), self.bell.ring
        if self._remaking.step(self.db, current.get, folders=folders, now_ms=now_ms, ring=ring):
            return True
        own = limits.of_folders(self.db, self._settings, "max_spool_bytes")
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

    def _take_stored(
        self, transcript: Transcript, capture: Capture, place: Place, *, only: Collection[str], abandoned: bool
    ) -> Enqueued:
        """Some turns of a session out of OpenCode's store."""
        self._adopt(transcript.session.id)
        now_ms, ring = clock.now_ms(), self.bell.ring
        done = enqueue(self.db, transcript, capture, place, now_ms=now_ms, ring=ring, only=only, abandoned=abandoned)
        self._tell(transcript.session.id, done)
        if done.keys:
            self._bound()
        return done

    def finish(self) -> None:
        """OpenCode has ended: what still waits is interrupted, unless another OpenCode has the session open.

        Its store tells more than the last snapshots, which count where it cannot be read.
        """
        self._settle_anew()
        require_known(self.db)
        self._captures.refresh()
        with self._store.kept_open():
            opened = {session: read_line(line).directory for session, line in self._sessions.items()}
            for session, directory in (opened | self._missed).items():
                seen = self._captures.seen(directory)
                if seen is None or seen.capture is None or session in self._deleted:
                    continue
                now_ms = clock.now_ms()
                if self._reconciling.compare(self.db, session, seen.folder, seen.capture, now_ms, has_ended=True):
                    self._unfinished.pop(session, None)
                self._reconciling.look_below(session, Place(self.target.id, seen.folder), has_ended=True)
                self._sessions.pop(session, None)
                self._missed.pop(session, None)
        elsewhere = self._elsewhere()
        current = self._captures.by_folder()
        for session, left in list(self._unfinished.items()):
            # Not as it was captured when it began: its folder may be held by now. Then OpenCode's store keeps it.
            capturing = current.get(left.place.folder)
            if session not in elsewhere and capturing is not None:
                enqueue(
                    self.db,
                    left.transcript,
                    capturing,
                    left.place,
                    now_ms=clock.now_ms(),
                    ring=self.bell.ring,
                    abandoned=True,
                )
            del self._unfinished[session]

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

    def estate(self) -> list[bytes]:
        """Lines that make another hook know what this one knows and the ledger does not."""
        waiting = [line for left in self._unfinished.values() for line in left.lines]
        return [self._first, *self._sessions.values(), *self._deleted.values(), *waiting]

    # --- beside the lines

    def heal(self, error: Exception) -> None:
        """After a failed statement: where the ledger was damaged and is recovered, go on with the new one."""
        if heal(self.db, error):
            old = self.db, self.bell, self._announced, self._starting
            self._settle()  # the new ledger may know the destination by another number, and nothing of its folders
            with suppress(sqlite3.Error, OSError):
                _close(*old)
            self._introduce()
            self.log("the ledger was damaged and is recovered; `opencode-helicone status` says what is lost")

    def announce(self, backlog: int) -> None:
        facts = {"destination": self.target.id, "sessions": sorted(self._sessions), "backlog": backlog}
        self._announced.say({**facts, "version": __version__})

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

    @property
    def has_more(self) -> bool:
        """Whether `catch_up` may have something to do."""
        now_s = time.monotonic()
        is_behind = (
            self._may_capture_again or self._reconciling.is_due(now_s) or self._missed_and_captured() is not None
        )
        return now_s >= self._catch_up_s and is_behind

    def catch_up(self) -> None:
        """One session out of OpenCode's store: captured again, or compared. Raises sqlite3.Error, OSError, SchemaError.

        Only one, so that a line never waits for longer than that.
        """
        now_s, now_ms = time.monotonic(), clock.now_ms()
        self._catch_up_s = now_s + CARE_S  # should it fail
        if identity(self.spool.path / "ledger.db") != self._ledger_file:
            return  # the next line goes on in the one that is there now
        require_known(self.db)
        self._may_capture_again = self._may_capture_again and self._capture_again()
        missed = self._missed_and_captured()
        if missed is not None:
            session, seen, capturing = missed
            self._reconciling.compare(self.db, session, seen, capturing, now_ms, has_ended=False)
            del self._missed[session]
        elif not self._may_capture_again and self._reconciling.is_due(now_s):
            ours = {*self._sessions, *self._deleted}
            self._reconciling.step(self.db, self._captures.of, ours, now_s=now_s, now_ms=now_ms)
        self._catch_up_s = now_s

    def _missed_and_captured(self) -> tuple[str, str, Capture] | None:
        """A session of which something was missed and that can be captured now, its folder, and how."""
        for session, directory in self._missed.items():
            seen = self._captures.seen(directory)
            if seen is not None and seen.capture is not None and session not in self._deleted:
                return session, seen.folder, seen.capture
        return None

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

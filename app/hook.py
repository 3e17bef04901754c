"""The plugin's other end: one process for one OpenCode, NDJSON on stdin, jobs in the ledger.

    stdin ─▶ Inbox (a thread) ─▶ one line at a time: parse ▶ enqueue ▶ ring
                                 beside the lines: make sure that a worker runs

It reads until EOF, ignores the signals of OpenCode's terminal, and no line can end it: a line that cannot be used is
one line in the log and a number in the ledger. While the ledger cannot be written the line is tried again; the full
inbox is then felt by the plugin as a pipe that does not drain, and it holds snapshots back, of which the newest is
all that matters. What could not be said or counted meanwhile is, as soon as the disk takes it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from app import clock, destination, ledger, log
from app.bell import Bell
from app.capture import capture, secrets_of_this_machine
from app.db import SchemaError, open_ledger
from app.enqueue import Capture, Place, enqueue
from app.inbox import Inbox, Line, LineError, read_line
from app.parse import parse
from app.place import PlaceError, identity
from app.presence import Announced, Only, is_taken, present
from app.redact import PatternError
from app.settings import Plugin, Settings, SettingsError, capture_options, delivery_options, to_record
from app.sources import Sources, unattended
from app.spool import Spool, folder, target, worker_signature
from app.transcript import Transcript, TranscriptError

CARE_S = 2.0
"""How often the hook looks whether its worker lives."""
STARTING_S = 30.0
"""How long a worker that was started may take until it holds its lock."""
START_PAUSE_S_MAX = 300.0
"""Between two starts of a worker that ends again and again; the pause doubles up to this."""
TRY_AGAIN_S = 1.0
UNCOUNTED_MAX = 100
LAST_TRIES = 60
"""How often, in all, what is left is tried on a ledger that cannot be written, after OpenCode has ended."""


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """Turns of a session that were not final, and how to export them should nobody complete them."""

    transcript: Transcript
    capture: Capture
    place: Place


class Hook:
    """What one hook knows: its spool and destination from the first line on, and the turns that wait."""

    def __init__(self, sources: Sources, first: Line, settings: Settings) -> None:
        self._sources = sources
        self._known = secrets_of_this_machine(sources.environ)
        self._pinned_spool = first.spool
        self.spool = Spool(settings.spool_directory)
        self._sessions: set[str] = set()
        self._unfinished: dict[str, _Unfinished] = {}
        self._deleted: set[str] = set()
        self._settings = settings
        self._worker: subprocess.Popen[bytes] | None = None
        log.carry_warnings(self.spool.hook_log)
        self._settle()
        self._cared_s = 0.0
        self._start_s = 0.0
        self._start_pause_s = CARE_S

    def _settle(self) -> None:
        """Open what is in the spool, all of it or nothing. Raises PlaceError, OSError, sqlite3.Error, SchemaError."""
        with ExitStack() as stack:
            db = stack.enter_context(closing(open_ledger(self.spool.path)))
            opened = identity(self.spool.path / "ledger.db")
            ours = target(db, self._settings, clock.now_ms())
            bell = stack.enter_context(closing(Bell(self.spool.path, ours.id)))
            starting = Only(self.spool.automatic_worker(ours.id).with_suffix(".starting"))
            self._announced = Announced(self.spool.hooks)
            stack.pop_all()  # `close` does it from here on
        self.db, self._ledger_file, self.target, self.bell, self._starting = db, opened, ours, bell, starting
        self._captures: dict[str, tuple[Mapping[str, object], Capture | None]] = {}

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
        lost = len(held - ledger.pending_keys(self.db))
        self.log(f"the spool was removed or replaced: {lost} job(s) that waited in it are lost; going on in a new one")
        if lost:
            destination.note(self.db, "jobs lost with a spool that was removed", clock.now_ms(), lost)

    def take(self, line: Line) -> None:
        """Do what a line says. Raises LineError for one that cannot be used, sqlite3.Error to be tried again."""
        self._settle_anew()
        match line.type:
            case "open":
                self._open(line)
            case "snapshot":
                self._snapshot(line)
            case "deleted":
                self._unfinished.pop(line.session, None)
                self._deleted.add(line.session)
                self._adopt(line.session)
                dropped = ledger.drop_session(self.db, self.target.id, line.session, clock.now_ms())
                if dropped:
                    self.log(f"dropped {dropped} undelivered job(s) of a session deleted in OpenCode")
            case "refused":
                reason = line.message.get("reason")
                raise LineError(f"by the plugin: {reason if reason == 'too large' else 'unknown'}")
            case _:
                raise LineError("unknown type")

    def _open(self, line: Line) -> None:
        self._sessions.add(line.session)
        self._settings = load(self._sources, line, self._pinned_spool)
        self._capture(line)
        self._introduce()
        self.care()

    def _introduce(self) -> None:
        """Tell the ledger how to deliver, and which worker is wanted."""
        brought = to_record(self._settings, delivery_options(self._settings))
        destination.remember_delivery_options(self.db, self.target.id, brought)
        destination.want_worker(self.db, self.target.id, worker_signature(self._settings))

    def _snapshot(self, line: Line) -> None:
        capturing = self._capture(line)
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
        self._sessions.add(session)
        self._adopt(session)
        place = Place(self.target.id, folder(self.db, line.directory))
        whole = self._with_unfinished(transcript)
        done = enqueue(self.db, whole, capturing, place, now_ms=clock.now_ms(), ring=self.bell.ring)
        self._unfinished.pop(session, None)
        if done.keys:
            self._bound()
        if done.waiting:
            left = replace(whole, turns=tuple(done.waiting))
            self._unfinished[session] = _Unfinished(left, capturing, place)

    def _adopt(self, session: str) -> None:
        """What this session left behind while no key was known goes where it goes now."""
        for one in destination.destinations(self.db) if self.target.key_fingerprint else []:
            if not one.key_fingerprint:
                ledger.adopt(self.db, one.id, self.target.id, now_ms=clock.now_ms(), session=session)

    def _bound(self) -> None:
        """Keep the spool within its size also where no worker runs, which would do it."""
        dropped = ledger.drop_oversize(self.db, clock.now_ms(), self._settings.max_spool_bytes)
        if dropped:
            self.log(f"dropped {dropped} job(s) by size (maxSpoolSize)")

    def _with_unfinished(self, transcript: Transcript) -> Transcript:
        """The snapshot's turns and those that waited and that it does not bring again, in order."""
        unfinished = self._unfinished.get(transcript.session.id)
        if unfinished is None:
            return transcript
        brought = {turn.id for turn in transcript.turns}
        waited = [turn for turn in unfinished.transcript.turns if turn.id not in brought]
        turns = sorted((*waited, *transcript.turns), key=lambda turn: turn.messages[0].index)
        return replace(transcript, turns=tuple(turns))

    def _capture(self, line: Line) -> Capture | None:
        """How this line's folder is captured, recorded for later commands; None where `enable` is false."""
        seen = self._captures.get(line.directory)
        if seen is not None and seen[0] == line.options:
            return seen[1]
        settings = load(self._sources, line, self._pinned_spool)
        made = capture(settings, self._known) if settings.enable else None
        options = to_record(settings, capture_options(settings))
        place = folder(self.db, line.directory)
        destination.remember_folder(self.db, place, self.target.id, options, clock.now_ms())
        # Before anything new of these sessions: older turns go first.
        ledger.adopt_rotated(self.db, self.target, clock.now_ms())
        self._captures[line.directory] = (line.options, made)
        return made

    def finish(self) -> None:
        """OpenCode has ended: what still waits is interrupted, unless another OpenCode has the session open."""
        self._settle_anew()
        elsewhere: set[object] = set()
        for other in present(self.spool.hooks):
            sessions = other.says.get("sessions")
            if other.name != self._announced.name and isinstance(sessions, list):
                elsewhere.update(sessions)
        for session, left in list(self._unfinished.items()):
            if session not in elsewhere:
                enqueue(
                    self.db,
                    left.transcript,
                    left.capture,
                    left.place,
                    now_ms=clock.now_ms(),
                    ring=self.bell.ring,
                    abandoned=True,
                )
            del self._unfinished[session]

    # --- beside the lines

    def announce(self, backlog: int) -> None:
        self._announced.say({"destination": self.target.id, "sessions": sorted(self._sessions), "backlog": backlog})

    def care(self) -> None:
        """Make sure that one worker runs, if that is ours to do. Cheap: looks every CARE_S at the most."""
        if self._worker is not None and self._worker.poll() is not None:
            if self._worker.returncode != 0:
                self.log(f"the worker ended with exit code {self._worker.returncode}, see worker.log")
            self._worker = None
        if time.monotonic() - self._cared_s < CARE_S:
            return
        self._cared_s = time.monotonic()
        settings = self._settings
        if not settings.enable or settings.worker != "auto" or settings.api_key is None:
            return
        if is_taken(self.spool.automatic_worker(self.target.id)) or self._another_worker():
            self._starting.release()
            self._start_pause_s = CARE_S
        elif self._cared_s >= self._start_s + (STARTING_S if self._worker else 0):
            # Whoever holds this lock is starting one already.
            self._starting.release()
            if self._starting.take():
                self._start_worker()

    def _another_worker(self) -> bool:
        return any(worker.says.get("destination") == self.target.id for worker in present(self.spool.workers))

    def _start_worker(self) -> None:
        self._start_s = time.monotonic() + self._start_pause_s
        self._start_pause_s = min(2 * self._start_pause_s, START_PAUSE_S_MAX)
        # Isolated (-I) and outside of the project: its own `app`, `.env` and PYTHONPATH are not ours to run.
        with log.opened(self.spool.worker_log) as output:
            self._worker = subprocess.Popen(
                [sys.executable, "-I", "-m", "app", "worker", "--automatic"],
                cwd=self.spool.path,
                env={**self._sources.environ, "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.spool.path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def log(self, message: str) -> None:
        log.append(self.spool.hook_log, message, clock.now_ms())

    def close(self) -> None:
        _close(self.db, self.bell, self._announced, self._starting)


def _close(db: sqlite3.Connection, bell: Bell, announced: Announced, starting: Only) -> None:
    announced.withdraw()
    starting.release()
    bell.close()
    db.close()


def load(sources: Sources, line: Line, pinned_spool: str | None) -> Settings:
    """The settings for a line's folder. The spool stays the one that the plugin named first."""
    options = {name: value for name, value in line.options.items() if name != "spoolDirectory"}
    if pinned_spool is not None:
        options["spoolDirectory"] = pinned_spool
    return sources.load(Plugin(options))


class Desk:
    """Hands the inbox's lines to the hook, and answers for those that it cannot take."""

    def __init__(self, inbox: Inbox, sources: Sources) -> None:
        self._inbox = inbox
        self._sources = sources
        self._hook: Hook | None = None
        self._spool: Spool | None = None
        self._tries_left = LAST_TRIES
        self._uncounted: Counter[str] = Counter()
        """Refusals by reason that no ledger has counted yet: nobody has named it, or it cannot be written."""

    def serve(self) -> None:
        """Until EOF."""
        while True:
            try:
                data = self._inbox.next(CARE_S)
            except EOFError:
                break
            if data is not None:
                self._attend(data)
            hook = self._hook
            if hook is not None:
                self._count()
                with suppress(sqlite3.Error, OSError):  # the next look does it
                    hook.announce(len(self._inbox))
                    hook.care()
        if self._hook is not None:
            self._patiently(self._hook.finish)
            self._count()
            self._hook.close()

    def _attend(self, data: bytes | LineError) -> None:
        try:
            if isinstance(data, LineError):
                raise data
            line = read_line(data)
        except LineError as error:
            self._refuse(str(error))
            return
        self._patiently(lambda: self._take(line))

    def _take(self, line: Line) -> None:
        if self._hook is None:
            # Where to complain, should the settings themselves be what is wrong.
            self._spool = Spool(Path(line.spool)) if line.spool else self._spool
            settings = load(self._sources, line, line.spool)
            if not settings.enable:
                return
            self._spool = Spool(settings.spool_directory)
            self._hook = Hook(self._sources, line, settings)
        self._hook.announce(len(self._inbox) + 1)
        self._hook.take(line)

    def _patiently(self, act: Callable[[], None]) -> None:
        """Do it; try again for as long as the disk or the ledger refuse and OpenCode lives, and a while after."""
        failed = 0
        while (error := self._attempt(act)) is not None:
            failed += 1
            if failed == 1:
                self._log(f"cannot write to the spool, trying again: {type(error).__name__}: {error}")
            if self._inbox.ended:
                self._tries_left -= 1
            if self._tries_left <= 0:
                self._refuse("the spool could not be written", f"{type(error).__name__}: {error}")
                return
            time.sleep(TRY_AGAIN_S)
        if failed:
            self._log(f"the spool can be written again, at try {failed + 1}")

    def _attempt(self, act: Callable[[], None]) -> sqlite3.Error | OSError | None:
        """What the disk or the ledger say against it; None when it is done, or refused for good."""
        try:
            act()
        except LineError as error:
            self._refuse(str(error))
        except PlaceError as error:
            # Nothing is to be written there; `status` in the usual place must not look as if all were well.
            self._spool = Spool(Settings().spool_directory)
            self._refuse(type(error).__name__, str(error))
        except (SettingsError, PatternError, SchemaError) as error:
            self._refuse(type(error).__name__, str(error))
        except (sqlite3.Error, OSError) as error:
            return error
        except Exception as error:  # noqa: BLE001 - a bug of ours may cost one line, never all that come after it
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._refuse(f"internal error {type(error).__name__}", f"{Path(place.filename).name}:{place.lineno}")
        return None

    def _refuse(self, reason: str, detail: str = "") -> None:
        """One line in the log, one more in the ledger's count. `reason` is one of few words, `detail` is not kept."""
        self._log(f"refused a line: {reason}{detail and f': {detail}'}")
        if reason in self._uncounted or len(self._uncounted) < UNCOUNTED_MAX:
            self._uncounted[reason] += 1
        self._count()

    def _count(self) -> None:
        """Bring the refusals into the ledger, if it can be written: `status` must not look as if all were well."""
        with suppress(sqlite3.Error, OSError, SchemaError, ValueError), ExitStack() as stack:
            if self._uncounted and self._hook is not None:
                self._bring(self._hook.db)
            elif self._uncounted and self._spool is not None:
                self._bring(stack.enter_context(closing(open_ledger(self._spool.path))))

    def _bring(self, db: sqlite3.Connection) -> None:
        for reason, times in list(self._uncounted.items()):
            destination.refuse(db, reason, clock.now_ms(), times=times)
            del self._uncounted[reason]

    def _log(self, message: str) -> None:
        spool = self._spool or Spool(self._usual_spool())
        log.append(spool.hook_log, message, clock.now_ms())

    def _usual_spool(self) -> Path:
        """Where to complain before a line has named the spool."""
        try:
            return self._sources.load().spool_directory
        except SettingsError:
            return Settings().spool_directory


def main() -> None:
    """The process: `python -I -m app hook`, started by the plugin."""
    # They belong to OpenCode's terminal: the hook reads on until the pipe ends.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Desk(Inbox(sys.stdin.fileno()), unattended(dict(os.environ))).serve()

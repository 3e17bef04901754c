"""The plugin's other end: one process for one OpenCode, NDJSON on stdin, jobs in the ledger.

    stdin ─▶ Inbox (a thread) ─▶ one line at a time: parse ▶ enqueue ▶ ring
                                 beside the lines: make sure that a worker runs

It reads until EOF, ignores the signals of OpenCode's terminal, and no line can end it: a line that cannot be used is
one line in the log and a number in the ledger. While the ledger cannot be written the line is tried again; the full
inbox is then felt by the plugin as a pipe that does not drain, and it holds snapshots back, of which the newest is
all that matters. What could not be said or counted meanwhile is, as soon as the disk takes it.
When the program was installed anew, or the ledger belongs to a newer one, this process becomes the installed program:
what it has read and not stored goes along in a pipe (see `succession`).
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
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from app import __version__, clock, destination, ledger, log
from app.bell import Bell
from app.capture import capture, secrets_of_this_machine
from app.db import SchemaError, heal, open_ledger, require_known
from app.enqueue import Capture, Place, enqueue
from app.inbox import CUT_OFF, TOO_LONG, Inbox, Line, LineError, read_line
from app.parse import parse
from app.place import PlaceError, identity
from app.presence import Announced, Only, is_taken, present
from app.redact import PatternError
from app.remake import Remaking
from app.settings import Plugin, Settings, SettingsError, capture_options, delivery_options, to_record
from app.sources import Sources, unattended
from app.spool import Spool, folder, target, worker_signature
from app.store import store_file
from app.succession import Succession, become_hook, bequeath
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
    lines: tuple[bytes, ...]
    """The snapshots that told of them, as they came."""


class OutdatedError(Exception):
    """A program that is installed, and starts, is to take over."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """How a folder is captured, and what that follows from."""

    line: Line
    """The last one that brought other options, without its message."""
    texts: object
    folder: str
    capture: Capture | None
    """None where `enable` is false."""


class Hook:
    """What one hook knows: its spool and destination from the first line on, and the turns that wait."""

    def __init__(self, sources: Sources, first: Line, settings: Settings) -> None:
        self._sources = sources
        self._known = secrets_of_this_machine(sources.environ)
        self._pinned_spool = first.spool
        self.spool = Spool(settings.spool_directory)
        self._first = first.as_open()
        self._sessions: dict[str, bytes] = {}
        """Those that live here, each with the line that opens it; in the order of the last time."""
        self._unfinished: dict[str, _Unfinished] = {}
        self._deleted: dict[str, bytes] = {}
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
        self._remaking = Remaking(store_file(self._sources.environ), ours.id, self.spool.hooks)
        self._captures: dict[str, _Captured] = {}

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
                if dropped:
                    self.log(f"dropped {dropped} undelivered job(s) of a session deleted in OpenCode")
            case "refused":
                reason = line.message.get("reason")
                # The first two were said by the hook that this process was before.
                known = reason in {TOO_LONG, CUT_OFF}
                raise LineError(
                    str(reason) if known else f"by the plugin: {reason if reason == 'too large' else 'unknown'}"
                )
            case _:
                raise LineError("unknown type")

    def _open(self, line: Line) -> None:
        settings = load(self._sources, line, self._pinned_spool)
        self._capture(line)
        if not settings.enable:
            return  # noted for a worker that still runs; the other folders go on
        self._sessions.pop(line.session, None)
        self._sessions[line.session] = line.raw
        self._settings = settings
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
        self._sessions.setdefault(session, line.as_open())
        self._adopt(session)
        place = Place(self.target.id, folder(self.db, line.directory))
        whole = self._with_unfinished(transcript)
        done = enqueue(self.db, whole, capturing, place, now_ms=clock.now_ms(), ring=self.bell.ring)
        before = self._unfinished.pop(session, None)
        if done.keys:
            self._bound()
        if done.waiting:
            left = replace(whole, turns=tuple(done.waiting))
            brought = {turn.id for turn in transcript.turns}
            still = before is not None and any(turn.id not in brought for turn in left.turns)
            lines = (*(before.lines if before is not None and still else ()), line.raw)
            self._unfinished[session] = _Unfinished(left, capturing, place, lines)

    def _adopt(self, session: str) -> None:
        """What this session left behind while no key was known goes where it goes now."""
        for one in destination.destinations(self.db) if self.target.key_fingerprint else []:
            if not one.key_fingerprint:
                ledger.adopt(self.db, one.id, self.target.id, now_ms=clock.now_ms(), session=session)

    def _bound(self) -> None:
        """Keep the spool within its size also where no worker runs, which would do it."""
        now_ms, bytes_max = clock.now_ms(), self._settings.max_spool_bytes
        age_ms_max = self._settings.max_spool_age_ms
        ledger.give_up_confirmations(self.db, now_ms, bytes_max=bytes_max, age_ms_max=age_ms_max)
        dropped = ledger.drop_oversize(self.db, now_ms, bytes_max)
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
        texts = self._sources.texts()
        if seen is not None and (seen.line.options, seen.texts) == (line.options, texts):
            return seen.capture
        settings = load(self._sources, line, self._pinned_spool)
        made = capture(settings, self._known) if settings.enable else None
        options = to_record(settings, capture_options(settings))
        place = folder(self.db, line.directory)
        destination.remember_folder(self.db, place, self.target.id, options, clock.now_ms())
        # Before anything new of these sessions: older turns go first.
        ledger.adopt_rotated(self.db, self.target, clock.now_ms())
        self._captures[line.directory] = _Captured(replace(line, message={}), texts, place, made)
        return made

    def _capture_again(self) -> None:
        """What lost its bodies to a stricter policy, of the folders that this OpenCode has open."""
        for seen in list(self._captures.values()):
            with suppress(SettingsError, PatternError):  # said when the next snapshot comes
                self._capture(seen.line)
        current = {seen.folder: seen.capture for seen in self._captures.values()}
        while self._remaking.step(
            self.db, current.get, folders=tuple(current), now_ms=clock.now_ms(), ring=self.bell.ring
        ):
            pass

    def finish(self) -> None:
        """OpenCode has ended: what still waits is interrupted, unless another OpenCode has the session open."""
        self._settle_anew()
        require_known(self.db)
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

    @property
    def worker_pid(self) -> int | None:
        """The worker that it started, as far as it has not ended."""
        return None if self._worker is None else self._worker.pid

    def estate(self) -> list[bytes]:
        """Lines that make another hook know what this one knows and the ledger does not."""
        waiting = [line for left in self._unfinished.values() for line in left.lines]
        return [self._first, *self._sessions.values(), *self._deleted.values(), *waiting]

    # --- beside the lines

    def heal(self, error: Exception) -> None:
        """After a failed statement: where the ledger was damaged and is recovered, go on with the new one."""
        if heal(self.db, error):
            damaged, self.db = self.db, open_ledger(self.spool.path)
            self._ledger_file = identity(self.spool.path / "ledger.db")
            damaged.close()
            self.target = target(self.db, self._settings, clock.now_ms())
            self._captures.clear()  # the new ledger may have lost what was noted of them
            self.log("the ledger was damaged and is recovered; `opencode-helicone status` says what is lost")

    def announce(self, backlog: int) -> None:
        facts = {"destination": self.target.id, "sessions": sorted(self._sessions), "backlog": backlog}
        self._announced.say({**facts, "version": __version__})

    def care(self) -> None:
        """Make sure that one worker runs, if that is ours to do. Cheap: looks every CARE_S at the most."""
        if self._worker is not None and self._worker.poll() is not None:
            if self._worker.returncode != 0:
                self.log(f"the worker ended with exit code {self._worker.returncode}, see worker.log")
            self._worker = None
        if time.monotonic() - self._cared_s < CARE_S:
            return
        self._cared_s = time.monotonic()
        self._capture_again()
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


def note_disabled(settings: Settings, line: Line) -> bool:
    """`enable` is false: a worker that still runs must see it. False where nothing ever ran: nothing is made then."""
    is_used = (settings.spool_directory / "ledger.db").exists()
    if is_used:
        with closing(open_ledger(settings.spool_directory)) as db:
            ours = target(db, settings, clock.now_ms())
            options = to_record(settings, capture_options(settings))
            destination.remember_folder(db, folder(db, line.directory), ours.id, options, clock.now_ms())
    return is_used


class Desk:
    """Hands the inbox's lines to the hook, and answers for those that it cannot take."""

    def __init__(
        self, inbox: Inbox, sources: Sources, succession: Succession | None = None, children: Iterable[int] = ()
    ) -> None:
        self._inbox = inbox
        self.children = list(children)
        """Process ids: children of the hook that this process was before. They are ours to wait for."""
        self._sources = sources
        self._succession = succession or Succession()
        self._in_hand: bytes | LineError | None = None
        self._hook: Hook | None = None
        self._spool: Spool | None = None
        self._tries_left = LAST_TRIES
        self._is_done = False
        self._uncounted: Counter[str] = Counter()
        """Refusals by reason that no ledger has counted yet: nobody has named it, or it cannot be written."""

    def serve(self) -> list[bytes] | None:
        """Until EOF; then None. Before that when a newer program is to take over: lines for it, to be read first."""
        try:
            self._serve()
        except OutdatedError:
            return self._estate()
        finally:
            if self._hook is not None:
                with suppress(sqlite3.Error, OSError):  # the end of the process closes it, too
                    self._hook.close()
        return None

    def _serve(self) -> None:
        while True:
            self._consider_succession()
            self._reap()
            try:
                self._in_hand = self._inbox.next(CARE_S)
            except EOFError:
                break
            if self._in_hand is not None:
                self._attend(self._in_hand)
                self._in_hand = None
            if self._is_done and self._hook is None and not len(self._inbox):
                return
            hook = self._hook
            if hook is not None:
                self._count()
                with suppress(sqlite3.Error, OSError):  # the next look does it
                    hook.announce(len(self._inbox))
                    hook.care()
        if self._hook is not None:
            self._patiently(self._hook.finish)
            self._count()

    def _consider_succession(self) -> None:
        """Raises OutdatedError."""
        heir = self._succession.heir(time.monotonic(), self._log)
        if heir is not None:
            self._log(f"version {__version__} makes way for version {heir.version}, which was installed")
            raise OutdatedError

    def _reap(self) -> None:
        for pid in list(self.children):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self.children.remove(pid)

    def _estate(self) -> list[bytes]:
        if self._hook is not None and self._hook.worker_pid is not None:
            self.children.append(self._hook.worker_pid)
        in_hand = [self._in_hand + b"\n"] if isinstance(self._in_hand, bytes) else []
        known = [line + b"\n" for line in self._hook.estate()] if self._hook is not None else []
        return [*known, *in_hand, *self._inbox.leave()]

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
                # Nobody needs this process any more, and what else comes starts another one.
                self._is_done = note_disabled(settings, line)
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
            self._heal(error)
            time.sleep(TRY_AGAIN_S)
            self._consider_succession()
        if failed:
            self._log(f"the spool can be written again, at try {failed + 1}")

    def _attempt(self, act: Callable[[], None]) -> sqlite3.Error | OSError | SchemaError | None:
        """What the disk or the ledger say against it; None when it is done, or refused for good."""
        try:
            act()
        except LineError as error:
            self._refuse(str(error))
        except PlaceError as error:
            # Nothing is to be written there; `status` in the usual place must not look as if all were well.
            self._spool = Spool(Settings().spool_directory)
            self._refuse(type(error).__name__, str(error))
        except (SettingsError, PatternError) as error:
            self._refuse(type(error).__name__, str(error))
        except (sqlite3.Error, OSError, SchemaError) as error:
            return error
        except Exception as error:  # noqa: BLE001 - a bug of ours may cost one line, never all that come after it
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._refuse(f"internal error {type(error).__name__}", f"{Path(place.filename).name}:{place.lineno}")
        return None

    def _heal(self, error: Exception) -> None:
        if self._hook is not None:
            with suppress(sqlite3.Error, OSError, SchemaError):  # the next try does it
                self._hook.heal(error)

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
                require_known(self._hook.db)
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
    """The process: `python -I -m app hook`, started by the plugin.

    With `--inbox N PID...` by the hook that it was before: descriptor N is read first, and its children are PID...
    """
    # They belong to OpenCode's terminal: the hook reads on until the pipe ends.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = sys.stdin.fileno()
    descriptors = [*map(int, sys.argv[3:4]), pipe]
    children = [int(pid) for pid in sys.argv[4:]]
    for descriptor in descriptors[:-1]:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - positional only
    succession = Succession()
    sources = unattended(dict(os.environ))
    while True:
        desk = Desk(Inbox(*descriptors), sources, succession, children)
        estate = desk.serve()
        if estate is None:
            return
        bequeathed, feeder = bequeath(estate)
        descriptors = [bequeathed, pipe]
        children = [*desk.children, feeder]
        with suppress(OSError):  # then this program goes on where it was
            become_hook(bequeathed, children)

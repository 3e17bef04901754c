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
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from app import __version__, clock, destination, log
from app.capturing import load, note_disabled
from app.db import open_ledger
from app.hook import CARE_S, Hook
from app.inbox import Inbox, Line, LineError, read_line
from app.place import PlaceError
from app.redact import PatternError
from app.schema import SchemaError, require_known
from app.settings import Settings, SettingsError
from app.sources import Sources, unattended
from app.spool import Spool
from app.succession import Succession, become_hook, bequeath

TRY_AGAIN_S = 1.0
UNCOUNTED_MAX = 100
USAGE = 2
"""The exit code where the settings of the process itself are wrong; see docs/commands.md."""
LAST_TRIES = 60
"""How often, in all, what is left is tried on a ledger that cannot be written, after OpenCode has ended."""


class OutdatedError(Exception):
    """A program that is installed, and starts, is to take over."""


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
                self._in_hand = self._inbox.next(0 if self._hook is not None and self._hook.has_more else CARE_S)
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
                # A line that waits goes first.
                if hook.has_more and not len(self._inbox) and (error := self._attempt(hook.catch_up)) is not None:
                    self._log(f"what OpenCode's store holds is not compared yet: {type(error).__name__}: {error}")
        if self._hook is not None:
            self._patiently(self._hook.finish)
            self._patiently(self._hook.finish_reconciling)
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
            self._spool = _default_spool()
            self._refuse(type(error).__name__, str(error))
        except PatternError as error:
            self._refuse(type(error).__name__, error.without_text)
        except SettingsError as error:
            self._refuse(type(error).__name__, error.for_logs)
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
        spool = self._spool or self._usual_spool()
        if spool is not None:
            log.append(spool.hook_log, message, clock.now_ms())

    def _usual_spool(self) -> Spool | None:
        """Where to complain before a line has named the spool."""
        try:
            return Spool(self._sources.load().spool_directory)
        except SettingsError:
            return _default_spool()


def _default_spool() -> Spool | None:
    """None where this user has no home folder."""
    try:
        return Spool(Settings().spool_directory)
    except SettingsError:
        return None


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
    try:
        sources = unattended(dict(os.environ))
    except SettingsError as error:
        sys.stderr.write(f"opencode-helicone: {error}\n")
        sys.exit(USAGE)
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

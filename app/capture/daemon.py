"""Hook process: reads the plugin's lines, hands each to the hook of its spool, acknowledges it, upgrades itself.

    stdin ─▶ PipeReader (a thread) ─▶ one line at a time ─▶ the Hook of its directory's spool notes it as owed
    stdout ◀─ acknowledged        beside the lines: what is owed is read from OpenCode's store, and a worker runs

The settings of a line's directory say which spool that is; the first ones that could be used, for as long as this
process lives. Where they want nothing (`enable` is false), nothing is made. When that holds for every directory, the
process ends with NOTHING_WANTED, and the plugin starts no other one for these. Where the settings cannot be used, lines
are refused, and what they told of is taken from OpenCode's store when the settings can be used again.

It reads until EOF, ignores the signals of OpenCode's terminal, and no line can end it: a line that cannot be used is
one line in the log and a number in the ledger. While the ledger cannot be written the line is tried again; the plugin
sees that nothing is acknowledged, and keeps the newest notice of each session, which is all that matters. What could
not be said or counted meanwhile is, as soon as the disk takes it.
When the program was installed anew, or the ledger belongs to a newer one, this process becomes the installed program:
what it has read and not stored goes along in a pipe (see `runtime.upgrade`).
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app import __version__
from app.capture.messages import PROTOCOL, Line, LineError, has_half_a_character, read_line
from app.capture.notices import BUG, CARE_S
from app.capture.pipe_reader import PipeReader
from app.capture.targets import note_disabled
from app.database.open import open_ledger
from app.database.schema import SchemaError, migrations, require_known
from app.ledger import incidents
from app.privacy.user_patterns import PatternError
from app.runtime import clock, log
from app.runtime.filesystem import PlaceError
from app.runtime.spool import Spool
from app.runtime.terminal import visible
from app.runtime.upgrade import LOOK_S, Upgrade, become_hook, pipe_of
from app.settings.lookup import Sources, unattended
from app.settings.model import Settings, SettingsError

if TYPE_CHECKING:
    from app.capture.handler import Hook

NOTHING_WANTED = 40
"""The exit code that says so; as in app/sources/opencode/plugin/helicone.js."""
TRY_AGAIN_S = 1.0
UNCOUNTED_MAX = 100
USAGE = 2
"""The exit code where the settings of the process itself are wrong; see docs/commands.md."""
LAST_TRIES = 60
"""How often, in all, what is left is tried on a ledger that cannot be written, after OpenCode has ended."""


class OutdatedError(Exception):
    """A program that is installed, and starts, is to take over."""


class Daemon:
    """Hands the plugin's lines to the hooks, one for each spool, and answers for those that none can take."""

    def __init__(
        self, pipe_reader: PipeReader, sources: Sources, upgrade: Upgrade | None = None, children: Iterable[int] = ()
    ) -> None:
        self._pipe_reader = pipe_reader
        self.children = list(children)
        """Process ids: children of the hook that this process was before. They are ours to wait for."""
        self._sources = sources
        self._upgrade = upgrade or Upgrade(migrations()[-1][0])
        self._in_hand: bytes | LineError | None = None
        self._taken = self._acknowledged = 0
        """The newest line that was taken, and the newest that the plugin was told about."""
        self._hooks: dict[Path, Hook] = {}
        """By spool."""
        self._spools: dict[str, Path] = {}
        """By directory."""
        self._held: dict[tuple[str, str], Line] = {}
        """By directory and session the newest line that was refused because the settings there could not be used."""
        self._unwanted: set[str] = set()
        self._is_wanted = False
        """A line came of a directory that is not among the unwanted ones."""
        self._looked_s = 0.0
        self._tries_left = LAST_TRIES
        self._uncounted: Counter[tuple[Path, str]] = Counter()
        """Refusals, by spool and reason, that its ledger has not counted yet: it cannot be written."""

    def serve(self) -> list[bytes] | None:
        """Until EOF, or until nothing is wanted; then None.

        Before that when a newer program is to take over: lines for it, to be read first.
        """
        try:
            self._serve()
        except OutdatedError:
            return self._pending_messages()
        finally:
            for hook in self._hooks.values():
                with suppress(sqlite3.Error, OSError):  # the end of the process closes it, too
                    hook.close()
        return None

    @property
    def is_unwanted(self) -> bool:
        """Nobody needs this process: whatever was said came from directories that want nothing."""
        return bool(self._unwanted) and not self._is_wanted and not len(self._pipe_reader)

    def _serve(self) -> None:
        while not self.is_unwanted:
            self._consider_upgrade()
            self._reap()
            try:
                pause_s = min((hook.due_s() for hook in self._hooks.values()), default=CARE_S)
                self._in_hand = self._pipe_reader.next(min(pause_s, CARE_S))
            except EOFError:
                break
            if self._in_hand is not None:
                self._attend(self._in_hand)
                self._in_hand = None
            self._count()
            if self._held and time.monotonic() - self._looked_s >= CARE_S:
                self._looked_s = time.monotonic()
                self._resume()
            for hook in self._hooks.values():
                self._tend(hook)
            self._acknowledge()
        self._resume()
        for hook in self._hooks.values():
            self._patiently(hook.finish, hook)
        self._acknowledge()
        for hook in self._hooks.values():
            self._patiently(hook.finish_reconciling, hook)
        self._count()

    def _tend(self, hook: Hook) -> None:
        with suppress(sqlite3.Error, OSError):  # the next look does it
            hook.announce(len(self._pipe_reader))
            hook.care()
        # A line that waits goes first.
        if hook.due_s() <= 0 and not len(self._pipe_reader):
            error = self._attempt(hook.catch_up, hook)
            if error is not None:
                told = f"what OpenCode's store holds is not in the spool yet: {type(error).__name__}: {error}"
                self._log(told, hook.spool.path)
                self._recover_after(error, hook.spool.path)

    def _consider_upgrade(self) -> None:
        """Raises OutdatedError."""
        new = self._upgrade.new_version(time.monotonic(), self._log)
        if new is not None:
            self._log(f"version {__version__} makes way for version {new.version}, which was installed")
            raise OutdatedError

    def _reap(self) -> None:
        for pid in list(self.children):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self.children.remove(pid)

    def _pending_messages(self) -> list[bytes]:
        hooks = self._hooks.values()
        self.children += [pid for hook in hooks for pid in hook.worker_pids]
        in_hand = [self._in_hand] if isinstance(self._in_hand, bytes) else []
        known = [line for hook in hooks for line in hook.pending_messages()]
        known += self._held.values()
        return [
            *(line + b"\n" for line in (*(line.as_bytes() for line in known), *in_hand)),
            *self._pipe_reader.leave(),
        ]

    def _acknowledge(self) -> None:
        """Tell the plugin up to which line everything was looked for, or is owed in the ledger.

        Whether it listens is its own affair.
        """
        ahead = [hook.acknowledged for hook in self._hooks.values()]
        number = min([self._taken, *(number - 1 for number in ahead if number is not None)])
        if number > self._acknowledged:
            self._acknowledged = number
            with suppress(OSError):
                os.write(sys.stdout.fileno(), json.dumps({"v": PROTOCOL, "ack": number}).encode() + b"\n")

    def _attend(self, data: bytes | LineError) -> None:
        try:
            if isinstance(data, LineError):
                raise data
            line = read_line(data)
        except LineError as error:
            self._refuse(str(error), self._where())
            return
        self._patiently(lambda: self._take(line), line)
        self._taken = max(self._taken, line.number or 0)
        self._is_wanted = self._is_wanted or line.directory not in self._unwanted

    def _take(self, line: Line) -> None:
        try:
            hook = self._hook_of(line)
            if hook is not None:
                hook.announce(len(self._pipe_reader) + 1)
                hook.take(line)
                if line.held_since_ms is not None:  # said by the hook that this process was before
                    hook.resume(line, line.held_since_ms)
        except (SettingsError, PatternError):
            since = [one.held_since_ms for one in self._held.values() if one.directory == line.directory]
            since_ms = next(iter(since), line.held_since_ms) or clock.now_ms()
            self._held[line.directory, line.session] = replace(line, number=None, held_since_ms=since_ms)
            raise

    def _hook_of(self, line: Line) -> Hook | None:
        """The one of the directory's spool; None where nothing is wanted, and where there is nothing to delete."""
        known = self._spools.get(line.directory)
        if known in self._hooks:
            return self._hooks[known]
        settings = self._sources.load(line.directory or None, handed=line.options)
        spool = settings.spool_directory
        if has_half_a_character(str(spool)):
            raise LineError("spool is no path")
        if spool not in self._hooks and not settings.enable:
            self._unwanted.add(line.directory)
            note_disabled(settings, line.directory, clock.now_ms())
            return None
        self._unwanted.discard(line.directory)
        self._spools[line.directory] = spool
        if spool not in self._hooks:
            if line.why == "deleted" and not (spool / "ledger.db").exists():
                return None
            self._hooks[spool] = self._make_hook(line, settings)
        return self._hooks[spool]

    def _make_hook(self, line: Line, settings: Settings) -> Hook:
        """Loads what reads OpenCode's store: not while OpenCode starts, nor where nobody says anything.

        Not from an installation that came after this process: it waits for that to be whole, and makes way.
        """
        while not (self._hooks or self._pipe_reader.ended or self._upgrade.is_untouched):
            self._consider_upgrade()
            time.sleep(LOOK_S / 4)
        from app.capture.handler import Hook  # noqa: PLC0415 - 150 ms: the reason stands above

        return Hook(self._sources, line, settings)

    def _resume(self) -> None:
        """Take from OpenCode's store what was refused for settings that can be used by now."""
        for key, line in list(self._held.items()):
            with suppress(SettingsError, PatternError, LineError, OSError, sqlite3.Error, SchemaError):  # the next look
                self._take(line)
                del self._held[key]

    def _patiently(self, act: Callable[[], None], at: Line | Hook) -> None:
        """Do it; try again for as long as the disk or the ledger refuse and OpenCode lives, and a while after."""
        failed = 0
        while (error := self._attempt(act, at)) is not None:
            spool = self._where(at)
            failed += 1
            if failed == 1:
                self._log(f"cannot write to the spool, trying again: {type(error).__name__}: {error}", spool)
            if self._pipe_reader.ended:
                self._tries_left -= 1
            if self._tries_left <= 0:
                self._refuse("the spool could not be written", spool, f"{type(error).__name__}: {error}")
                return
            self._recover_after(error, spool)
            time.sleep(TRY_AGAIN_S)
            self._consider_upgrade()
        if failed:
            self._log(f"the spool can be written again, at try {failed + 1}", self._where(at))

    def _attempt(self, act: Callable[[], None], at: Line | Hook) -> sqlite3.Error | OSError | SchemaError | None:
        """What the disk or the ledger say against it; None when it is done, or refused for good."""
        try:
            act()
        except LineError as error:
            self._refuse(str(error), self._where(at))
        except PlaceError as error:
            # Nothing is to be written there; `status` in the usual place must not look as if all were well.
            self._refuse(type(error).__name__, _default_spool(), str(error))
        except PatternError as error:
            self._refuse(type(error).__name__, self._where(at), error.without_text)
        except SettingsError as error:
            self._refuse(type(error).__name__, self._where(at), error.for_logs)
        except (sqlite3.Error, OSError, SchemaError) as error:
            return error
        except OutdatedError:
            raise  # what is in hand goes along
        except Exception as error:  # noqa: BLE001 - a bug of ours may cost one line, never all that come after it
            self._refuse(f"{BUG} {type(error).__name__}", self._where(at), log.where(error))
        return None

    def _recover_after(self, error: Exception, spool: Path | None) -> None:
        hook = None if spool is None else self._hooks.get(spool)
        if hook is not None:
            with suppress(sqlite3.Error, OSError, SchemaError):  # the next try does it
                hook.recover_after(error)

    def _refuse(self, reason: str, spool: Path | None, detail: str = "") -> None:
        """One line in the log, one more in the ledger's count. `reason` is one of few words, `detail` is not kept."""
        self._log(f"refused a line: {reason}{detail and f': {detail}'}", spool)
        if spool is None:
            return
        if (spool, reason) in self._uncounted or len(self._uncounted) < UNCOUNTED_MAX:
            self._uncounted[spool, reason] += 1
        self._count()

    def _count(self) -> None:
        """Bring the refusals into the ledgers that can be written: `status` must not look as if all were well."""
        for (path, reason), times in list(self._uncounted.items()):
            with suppress(sqlite3.Error, OSError, SchemaError, ValueError), ExitStack() as stack:
                hook = self._hooks.get(path)
                db = hook.opened.db if hook is not None else stack.enter_context(closing(open_ledger(path)))
                require_known(db)
                incidents.refuse(db, reason, clock.now_ms(), times=times)
                del self._uncounted[path, reason]

    def _log(self, message: str, spool: Path | None = None) -> None:
        spool = spool or self._where()
        if spool is not None:
            log.append(Spool(spool).hook_log, message, clock.now_ms())

    def _where(self, at: Line | Hook | None = None) -> Path | None:
        """The spool in which to complain: the line's or the hook's own, any that is in use, the usual one."""
        if at is not None and not isinstance(at, Line):
            return at.spool.path
        known = next(iter(self._hooks), None) if at is None else self._spools.get(at.directory)
        if known is not None:
            return known
        try:
            return self._sources.load().spool_directory
        except SettingsError:
            named = self._sources.environ.get("OPENCODE_HELICONE_SPOOL_DIRECTORY", "")
            return Path(named) if named.startswith("/") else _default_spool()


def _default_spool() -> Path | None:
    """None where this user has no home folder: then nobody can be told."""
    try:
        return Settings().spool_directory
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
    if not sys.stdout.isatty():  # a terminal is also the shell's
        os.set_blocking(sys.stdout.fileno(), False)
    descriptors = [*map(int, sys.argv[3:4]), pipe]
    children = [int(pid) for pid in sys.argv[4:]]
    for descriptor in descriptors[:-1]:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - positional only
    upgrade = Upgrade(migrations()[-1][0])
    try:
        sources = unattended(dict(os.environ))
    except SettingsError as error:
        sys.stderr.write(visible(f"opencode-helicone: {error}") + "\n")
        sys.exit(USAGE)
    while True:
        hook_daemon = Daemon(PipeReader(*descriptors), sources, upgrade, children)
        pending = hook_daemon.serve()
        if pending is None:
            if hook_daemon.is_unwanted:
                sys.exit(NOTHING_WANTED)
            return
        inherited, feeder = pipe_of(pending)
        descriptors = [inherited, pipe]
        children = [*hook_daemon.children, feeder]
        with suppress(OSError):  # then this program goes on where it was
            become_hook(inherited, children)

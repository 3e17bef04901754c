"""Hook of one spool: notes the plugin's notices, has sessions read one at a time, and keeps a worker running.

`daemon` is the process around it, `open_spool` what it has open.
"""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

from app.capture.keyring import Keyring
from app.capture.messages import Line, LineError
from app.capture.notices import CARE_S, Notices, bound
from app.capture.open_spool import OpenSpool
from app.capture.pipe_reader import CUT_OFF, TOO_LONG
from app.capture.session_reader import Reader
from app.capture.targets import folder
from app.database import recover
from app.database.connection import Replaced
from app.database.open import recover_after
from app.database.schema import require_known
from app.ledger import counts, folders, history, incidents, pruning
from app.privacy.redact import PatternError
from app.runtime import clock, log
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings, SettingsError
from app.sources.opencode.access import StoreError


class Hook:
    """One spool of this OpenCode: what its lines say is done there, in whatever ledger lies there now."""

    def __init__(self, sources: Sources, first: Line, settings: Settings) -> None:
        self._sources = sources
        self._keyring = Keyring(sources.environ)
        self.spool = Spool(settings.spool_directory)
        self._first = Line("notice", first.directory, first.options, "", "busy")
        self._notices = Notices()
        self._deleted: dict[str, Line] = {}
        """By session, each with what said so; the newest at the end."""
        self._left: tuple[set[str], dict[str, Reader]] | None = None
        """Jobs that waited in a spool that is gone, and what was read for it, until the new one knows."""
        self._logged: dict[str, None] = {}
        """What the log already says: each look at a session shows its odd values again."""
        log.carry_warnings(self.spool.hook_log)
        self.opened = self._open(settings)
        self._cared_s = 0.0
        self._catch_up_s = 0.0
        self._may_capture_again = False

    # --- the spool

    def _open(self, settings: Settings) -> OpenSpool:
        return OpenSpool(self._sources, self._keyring, settings, self._notices, log=self.log, log_once=self._log_once)

    def _reopen(self) -> OpenSpool:
        """Go on in the ledger that is there now, made if need be; returns what was open before, closed."""
        before = self.opened
        self.opened = self._open(before.settings)
        with suppress(sqlite3.Error, OSError):
            before.close()
        return before

    def _follow_spool(self) -> None:
        """Where the spool was removed or replaced: go on in the one that is there now.

        What waited in the old one is not brought over: whoever removes a spool wants what is in it gone.
        """
        if not self.opened.is_there:
            waited: set[str] = set()
            with suppress(sqlite3.Error):  # its files have no name any more, and can be read as long as they are open
                waited = counts.pending_keys(self.opened.db)
            self._left = waited, {one.name: one.reader for one in self._reopen().outlets}
        if self._left is not None:
            self._begin_anew()
            self._leave_behind(*self._left)
            self._left = None

    def _leave_behind(self, waited: set[str], readers: dict[str, Reader]) -> None:
        db = self.opened.db
        if any(what.startswith("ledger: ") for what, _, _ in incidents.incidents(db)):
            self.log("the ledger was damaged, and another process has recovered it; `status` says what is lost")
            return
        lost = len(waited - counts.pending_keys(db))
        if lost:
            incidents.note(db, "jobs lost with a spool that was removed", clock.now_ms(), lost)
        for outlet in self.opened.outlets:
            if outlet.name in readers:
                outlet.reader.go_on_from(readers[outlet.name])
        self.log(f"the spool was removed or replaced: {lost} job(s) that waited in it are lost; going on in a new one")

    def _begin_anew(self) -> None:
        """In another ledger than before, which knows neither of this hook nor of what is owed."""
        self.opened.introduce()
        self.opened.notice_processor.owe_again(clock.now_ms())

    def recover_after(self, error: Exception) -> None:
        """After a failed statement: go on in the ledger that is there now, once it is whole."""
        if isinstance(error, Replaced):
            self._follow_spool()
        elif recover_after(self.opened.db, error):
            self._reopen()  # the new ledger may know the destination by another number, and nothing of its folders
            self._begin_anew()
            self.log("the ledger was damaged and is recovered; `opencode-helicone status` says what is lost")

    def _ready(self) -> None:
        """Raises SchemaError when another program has made the ledger newer: nothing is written to it then."""
        self._follow_spool()
        require_known(self.opened.db)

    def close(self) -> None:
        self.opened.close()

    # --- lines

    def take(self, line: Line) -> None:
        """Do what a line says. Raises LineError for one that cannot be used, sqlite3.Error to be tried again.

        Raises SchemaError when another program has made the ledger newer.
        """
        self._ready()
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
            self.opened.captures.take(line)
        except (SettingsError, PatternError):
            self._owe(line)
            raise
        seen = self.opened.captures.seen(line.directory)
        if seen is None or not seen.settings.enable:
            return  # noted for a worker that still runs; the other folders go on
        if seen.settings is not self.opened.settings or line.session not in self._notices:
            self.opened.introduce(seen.settings)
        self._owe(line)
        self.care()

    def _is_stored(self, session: str) -> bool:
        with suppress(StoreError):
            return self.opened.store.root_of(session) is not None
        return False

    def _owe(self, line: Line) -> None:
        if line.session:  # else a hook that took over was told of the folder alone
            self.opened.notice_processor.owe(line, clock.now_ms())

    def _delete(self, line: Line) -> None:
        opened, db = self.opened, self.opened.db
        opened.notice_processor.forget(line.session, clock.now_ms())
        self._deleted.pop(line.session, None)
        self._deleted[line.session] = line
        bound(self._deleted)
        opened.main.adopt(line.session)
        dropped = sum(
            pruning.drop_session(db, outlet.target.id, line.session, clock.now_ms()) for outlet in opened.outlets
        )
        for left in recover.forget_copies(self.spool.path / "ledger.db").values():
            self.log(left)
        if dropped:
            self.log(f"dropped {dropped} undelivered job(s) of a session deleted in OpenCode")
            # A fork of it may show the same turns, which were left to their origin until now.
            of = folder(db, line.directory)
            history.compare_again(db, of)
            for outlet in opened.outlets:
                outlet.reader.forget()
                outlet.reconciling.begin(line.directory, of)

    def resume(self, line: Line, since_ms: int) -> None:
        """The settings of a folder can be used again, after they could not since then. Raises as `take`."""
        require_known(self.opened.db)
        self.opened.captures.take(line)
        folders.capture_from(self.opened.db, folder(self.opened.db, line.directory), since_ms)

    def pending_messages(self) -> list[Line]:
        """Lines that make another hook know what this one knows and the ledger does not."""
        return [self._first, *(one.line for one in self._notices), *self._deleted.values()]

    @property
    def acknowledged(self) -> int | None:
        """Every line before this one was looked for; None where all were."""
        return self._notices.acknowledged()

    # --- the end

    def finish(self) -> None:
        """OpenCode has ended: what still waits is interrupted, unless another OpenCode has the session open."""
        self._ready()
        self.opened.captures.refresh()
        self._notices.has_ended = True
        # Before the last look: of two that end together the later one sees that nobody has the session open.
        self.announce(1)  # until it is done
        now_s, notice_processor = time.monotonic(), self.opened.notice_processor
        notice_processor.end(now_s)
        with self.opened.store.kept_open():
            while not notice_processor.is_given_up and (one := self._notices.next(now_s)) is not None:
                notice_processor.look(one, now_s, clock.now_ms())

    def finish_reconciling(self) -> None:
        """The other sessions of its folders, as far as it has not come to them while OpenCode lived."""
        require_known(self.opened.db)
        now_s, now_ms = time.monotonic(), clock.now_ms()
        with self.opened.store.kept_open():
            for outlet in self.opened.outlets:
                capture_of = partial(self.opened.captures.of, name=outlet.name)
                outlet.reconciling.last_looks(capture_of, now_s=now_s, now_ms=now_ms)

    # --- beside the lines

    def announce(self, backlog: int) -> None:
        """Tell other processes of this one; `backlog` lines were not taken yet."""
        owned = [] if self._notices.has_ended else self._notices.owned()
        self.opened.announce(owned, backlog + len(self._notices))

    @property
    def worker_pids(self) -> list[int]:
        """The workers that it started, as far as they have not ended."""
        return [pid for outlet in self.opened.outlets if (pid := outlet.autostart.pid) is not None]

    def care(self) -> None:
        """Make sure that a worker runs for each destination, if that is ours to do.

        Cheap: looks every CARE_S at the most.
        """
        for outlet in self.opened.outlets:
            outlet.autostart.reap()
        if time.monotonic() - self._cared_s < CARE_S:
            return
        self._cared_s = time.monotonic()
        self.opened.captures.refresh()
        self._may_capture_again = True
        for outlet in self.opened.outlets:
            outlet.keep_served(self._cared_s)

    def due_s(self) -> float:
        """How long until `catch_up` may have something to do."""
        now_s = time.monotonic()
        if self._may_capture_again or self.opened.to_reconcile(now_s) is not None:
            return max(0.0, self._catch_up_s - now_s)
        due_s = self._notices.due_s()
        return CARE_S if due_s is None else max(0.0, due_s - now_s, self._catch_up_s - now_s)

    def catch_up(self) -> None:
        """One session out of OpenCode's store: read, captured again, or compared.

        Only one, so that a line never waits for longer than that. Raises sqlite3.Error, OSError, SchemaError.
        """
        now_s, now_ms = time.monotonic(), clock.now_ms()
        self._catch_up_s = now_s + CARE_S  # should it fail
        self._ready()
        opened, noticed = self.opened, self._notices.next(now_s)
        if noticed is not None:
            with opened.store.kept_open():
                opened.notice_processor.look(noticed, now_s, now_ms)
        elif self._may_capture_again:
            self._may_capture_again = opened.capture_again()
        elif (outlet := opened.to_reconcile(now_s)) is not None:
            ours = {*self._notices.owned(), *self._deleted}
            capture_of = partial(opened.captures.of, name=outlet.name)
            outlet.reconciling.step(capture_of, ours, now_s=now_s, now_ms=now_ms)
        self._catch_up_s = now_s

    def _log_once(self, message: str) -> None:
        if message not in self._logged:
            self._logged[message] = None
            bound(self._logged)
            self.log(message)

    def log(self, message: str) -> None:
        log.append(self.spool.hook_log, message, clock.now_ms())


def plain(said: object) -> str:
    """What the plugin says went wrong, if it is one of its own short sentences."""
    is_plain = isinstance(said, str) and re.fullmatch(r"[\w .:,-]{1,200}", said, re.ASCII)
    return str(said) if is_plain else "trouble that cannot be told"

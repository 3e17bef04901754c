"""A hook's looks at the sessions that its plugin has noticed: each is read, and what became of its notices is noted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from app.capture.enqueue import Place
from app.capture.messages import Line
from app.capture.notices import AGAIN_S, FAILED_S, Noticed, Notices, leave, look_again, postpone, settle
from app.capture.projects import Captures
from app.capture.session_reader import FAILURES_MAX, GONE, Look, Reader, Take, reason_of
from app.capture.targets import folder
from app.database.connection import Ledger
from app.database.schema import SchemaError
from app.ledger import destinations, folders, history, incidents, notices
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.runtime import failpoint, log
from app.settings.model import SettingsError
from app.sources.opencode.access import AbsentError, StoreError
from app.sources.opencode.export_files import ExportError
from app.sources.opencode.store import Store
from app.transcript.model import TranscriptError

BUG = "internal error"
SETTINGS_S = 2.0
"""Between two looks at a session whose folder's settings cannot be used."""


class Looking:
    """In one spool, at one store. Methods raise sqlite3.Error, OSError and SchemaError, to be tried again."""

    def __init__(  # noqa: PLR0913 - what a hook has
        self,
        db: Ledger,
        store: Store,
        destination_id: int,
        captures: Captures,
        notices: Notices,
        *,
        elsewhere: Callable[[], Collection[object]],
        take: Take,
        tell: Callable[[str], None],
    ) -> None:
        """`elsewhere` tells the sessions that another live OpenCode has open."""
        self._db = db
        self._store = store
        self._destination_id = destination_id
        self._captures = captures
        self._notices = notices
        self._elsewhere = elsewhere
        self._tell = tell
        self.reader = Reader(store, destination_id, take)
        self.store_name = destinations.fingerprint(db, str(store.path))
        self._has_ended = False
        self._failures = 0
        """Of looks since then, by the store's own fault."""

    def owe(self, line: Line, now_ms: int) -> None:
        """Note that a session is to be read."""
        added = self._notices.add(line, self._noted(line, now_ms))
        failpoint.reach("notice.noted")
        if line.why == "busy" and added.root is not None and self.reader.is_known(added.root):
            leave(added)  # it will say when it has done

    def owe_again(self, now_ms: int) -> None:
        """In a ledger that knows nothing of it."""
        for one in self._notices:
            if one.mark is not None:
                one.mark, one.due_s = self._noted(one.line, now_ms), 0

    def _noted(self, line: Line, now_ms: int) -> int:
        of = folder(self._db, line.directory)
        return notices.note_notice(self._db, self.store_name, line.session, of, now_ms)

    def forget(self, session: str, now_ms: int) -> None:
        """It was deleted."""
        self._notices.drop(session)
        self.reader.let_go()
        if notices.settle_notices(self._db, self.store_name, {session: folders.NEVER_MS}):
            incidents.note(self._db, GONE, now_ms)

    @property
    def is_given_up(self) -> bool:
        """OpenCode has ended, and its store cannot be read: each try may wait for seconds. All is owed."""
        return self._failures >= FAILURES_MAX

    def end(self, now_s: float) -> None:
        """OpenCode has ended: one more look at each session, and what is unfinished then is interrupted."""
        self._has_ended = True
        self._notices.look_at_all(now_s)
        # What another OpenCode that had them open has left to this one.
        left = notices.open_notices(self._db, self.store_name)
        for one in self._notices:
            one.mark, _ = left.get(one.session, (one.mark, ""))

    def inherit(self, root: str, owed: Mapping[str, int]) -> None:
        """A hook that is gone was told of these, which are shown inside of a session that is open here."""
        for known in self._notices.inside(root)[:1]:
            for session, mark in owed.items():
                if session not in self._notices:
                    line = replace(known.line, session=session, why="idle", number=None)
                    self._notices.add(line, mark).root = root

    def look(self, one: Noticed, now_s: float, now_ms: int) -> None:
        """Read what a notice named, as far as one look goes."""
        if self._captures.seen(one.line.directory) is None:  # the spool is new
            with suppress(SettingsError, PatternError):
                self._captures.take(one.line)
        seen = self._captures.seen(one.line.directory)
        if seen is not None and not seen.settings.enable:
            self.reader.let_go()
            self._settle([one])
        elif seen is None or seen.capture is None:
            self._wait([one], now_s, SETTINGS_S, "the settings of its folder cannot be used")
        else:
            self._look(one, Place(self._destination_id, seen.folder), seen.capture, now_s, now_ms)

    def _look(self, one: Noticed, place: Place, capturing: Capture, now_s: float, now_ms: int) -> None:
        due = [one]
        try:
            one.root = root = self._store.root_of(one.session)
            if root not in (None, one.session) and self._notices.is_at_work(root) and not self._has_ended:
                leave(one)  # what it is shown inside of says when that is done
                return
            due = self._notices.due_inside(one, now_s)
            look = None if root is None else self._read(root, due, place, capturing, now_ms)
        except (sqlite3.Error, OSError, SchemaError):
            raise
        except AbsentError as error:
            self._fail(due, now_s, error)
            if self._has_ended:
                self._give_up(due, now_ms)
        except (ExportError, TranscriptError) as error:
            self._fail(due, now_s, error)
        except Exception as error:  # noqa: BLE001 - a bug of ours may cost one session, never the others
            self._tell(f"{BUG} {type(error).__name__} at {log.where(error)}, while a session was read")
            self._wait(due, now_s, AGAIN_S, f"{BUG} {type(error).__name__}")
        else:
            self._conclude(look, one, due, now_s, now_ms)

    def _read(self, root: str, due: Sequence[Noticed], place: Place, capturing: Capture, now_ms: int) -> Look | None:
        changed_ms = self._store.changed_ms(root) if self._has_ended else None
        # What is new of a subagent belongs to the turn that called it first, however old that is.
        inside = (each for each in self._notices.inside(root) if each.mark is not None)
        is_anywhere = any(each.is_anywhere or each.session != root for each in inside)
        look = self.reader.look(
            self._db,
            root,
            place,
            capturing,
            now_ms=now_ms,
            whole=self._has_ended or is_anywhere,
            again=any(one.looks == 0 for one in due),
            is_over=lambda: self._has_ended and root not in self._elsewhere(),
        )
        if look == Look() and changed_ms is not None:
            history.note_reconciled(self._db, self._destination_id, root, min(changed_ms, now_ms))
        return look

    def _conclude(self, look: Look | None, one: Noticed, due: Sequence[Noticed], now_s: float, now_ms: int) -> None:
        if look is not None and look.has_more:
            for each in due:
                each.due_s = now_s  # behind those that were noticed meanwhile
            return
        if look is not None and not look.is_waiting:
            self._settle(self._notices.inside(one.root))
            return
        for each in due:
            look_again(each, now_s)
        # A session at work may be about to be written for the first time.
        if look is None and one.due_s is None and (one.line.why != "busy" or self._has_ended):
            self._give_up(due, now_ms)

    def _settle(self, those: Sequence[Noticed]) -> None:
        notices.settle_notices(self._db, self.store_name, _marks(those))
        for one in those:
            settle(one)

    def _give_up(self, those: Sequence[Noticed], now_ms: int) -> None:
        """They are not there any more."""
        gone = notices.settle_notices(self._db, self.store_name, _marks(those))
        for one in those:
            self._notices.drop(one.session)
        if gone:
            incidents.note(self._db, GONE, now_ms, gone)

    def _fail(self, those: Sequence[Noticed], now_s: float, error: ExportError | TranscriptError) -> None:
        self._failures += self._has_ended and isinstance(error, StoreError)
        self._tell(f"what OpenCode's store holds could not be read: {error}")
        self._wait(those, now_s, FAILED_S if those[0].looks == 0 else AGAIN_S, reason_of(error))

    def _wait(self, those: Sequence[Noticed], now_s: float, pause_s: float, reason: str) -> None:
        for one in those:
            postpone(one, now_s, pause_s)
        notices.note_wait(self._db, self.store_name, [one.session for one in those], reason)


def _marks(those: Sequence[Noticed]) -> dict[str, int]:
    """By session what settles each of these notices."""
    return {one.session: one.mark for one in those if one.mark is not None}

"""What OpenCode's store holds and no snapshot told of: turns of an OpenCode that was killed, or ran without its plugin.

    a folder is captured ─▶ its sessions that changed since they were last compared, one at a time:
        stored ▶ parse ▶ enqueue ─▶ all of it is in the ledger: noted, and not read again until it changes
                                 └▶ a turn is unfinished: looked at again, until it is finished or nobody can finish it

What was written before capture of the folder began is for `backfill`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from app import destination, ledger
from app.enqueue import Enqueued, Place
from app.export import Capture
from app.opencode import ExportError, Store, StoreError
from app.transcript import Transcript, TranscriptError

QUIET_MS = 600_000
"""An unfinished turn that no hook owns, in a session that was not written to for so long, is taken for abandoned."""
SETTLE_S = 3.0
"""Between two looks that both see no owner: one that makes way for a newer version is away for half a second."""
AGAIN_S = 30.0
"""Between two looks at what is unfinished, and after a store that could not be read."""
FAILURES_MAX = 3
"""So many tries to read the store that fail end the last looks."""


def is_quiet(changed_ms: int, now_ms: int) -> bool:
    """Whether nobody is at a session that was written to then. A time in the future is from a clock that was ahead."""
    return abs(now_ms - changed_ms) >= QUIET_MS


class Take(Protocol):
    """Enqueues `only` these turns of a session; as interrupted what is not finished, if it is `abandoned`."""

    def __call__(
        self, transcript: Transcript, capture: Capture, place: Place, *, only: Collection[str], abandoned: bool
    ) -> Enqueued: ...


@dataclass(slots=True)
class _Ahead:
    """A session that is to be looked at."""

    place: Place
    due_s: float
    has_ended: bool = False
    """The OpenCode that had it open is known to be gone."""
    unowned_s: float | None = None
    """Since when nobody was seen to have it open."""
    is_settled: bool = False
    read_ms: int | None = None
    """What OpenCode had written when its transcript was last read."""


class Reconciling:
    """Looks at one session at a time, so that a live line never waits for more than that."""

    def __init__(
        self,
        store: Store,
        destination_id: int,
        *,
        elsewhere: Callable[[], Collection[object]],
        take: Take,
        tell: Callable[[str], None],
    ) -> None:
        """`elsewhere` tells the sessions that another live OpenCode has open."""
        self._store = store
        self._destination_id = destination_id
        self._elsewhere = elsewhere
        self._take = take
        self._tell = tell
        self._folders: dict[str, str] = {}
        """Not yet listed: by directory, as the ledger knows it."""
        self._ahead: dict[str, _Ahead] = {}
        self._told: set[str] = set()

    def begin(self, directory: str, folder: str) -> None:
        """Look at the sessions of a folder, from the next step on."""
        self._folders[directory] = folder

    def look_below(self, session: str, place: Place, *, has_ended: bool = False) -> None:
        """Look at the subagents of a session that no call of it names: a plugin has started them, nobody tells of them.

        `has_ended` as for `_Ahead`.
        """
        try:
            found = self._store.uncalled(session)
        except ExportError as error:
            self._fail(error)
            return
        for name in found:
            if has_ended or name not in self._ahead:
                self._ahead[name] = _Ahead(place, 0, has_ended=has_ended)

    def is_due(self, now_s: float) -> bool:
        """Whether `step` has something to do. `now_s` is monotonic."""
        return bool(self._folders) or any(one.due_s <= now_s for one in self._ahead.values())

    def step(
        self,
        db: sqlite3.Connection,
        capture_of: Callable[[str], Capture | None],
        ours: Collection[str],
        *,
        now_s: float,
        now_ms: int,
    ) -> None:
        """List a folder, or look at a session. Raises sqlite3.Error, to be tried again.

        `capture_of` a folder is None where it is not captured now. `ours` are the sessions that our own OpenCode has
        open: they tell of themselves, and `compare` looks at them in the end.
        """
        if self._folders:
            self._list(db, now_s, now_ms)
            return
        session = min((one.due_s, name) for name, one in self._ahead.items() if one.due_s <= now_s)[1]
        one = self._ahead.pop(session)
        capturing = capture_of(one.place.folder)
        if capturing is None or session in ours:
            return
        is_first = one.unowned_s is None
        if session in self._elsewhere():
            one.unowned_s = None
        elif one.unowned_s is None:
            one.unowned_s = now_s
        one.is_settled = one.unowned_s is not None and now_s - one.unowned_s >= SETTLE_S
        one.due_s = now_s + (SETTLE_S if is_first and one.unowned_s is not None else AGAIN_S)
        try:
            if one.unowned_s is not None and self._compare(db, session, one, capturing, now_ms):
                return
        except (ExportError, TranscriptError) as error:
            self._fail(error)
            for other in self._ahead.values():
                other.due_s = max(other.due_s, now_s + AGAIN_S)
            return
        except sqlite3.Error:
            self._ahead[session] = one
            raise
        self._ahead[session] = one

    def compare(
        self, db: sqlite3.Connection, session: str, folder: str, capturing: Capture, now_ms: int, *, has_ended: bool
    ) -> bool:
        """A session of our own OpenCode; if that has ended, what it left unfinished is interrupted.

        Not where another one has it open. False when the store does not have it, or cannot be read, if only in part.
        """
        try:
            stored = self._store.transcript(session)
            if self._store.changed_ms(session) is None or not _is_of(db, stored, folder):
                return False
            one = _Ahead(Place(self._destination_id, folder), 0, has_ended=has_ended)
            self._compare(db, session, one, capturing, now_ms)
        except (ExportError, TranscriptError) as error:
            self._fail(error)
            return False
        return stored is None or not stored.unreadable

    def last_looks(
        self, db: sqlite3.Connection, capture_of: Callable[[str], Capture | None], *, now_s: float, now_ms: int
    ) -> None:
        """All that is ahead, once, now that no line will come any more. Raises sqlite3.Error, to be tried again."""
        while self._folders:
            self._list(db, now_s, now_ms)
        failures = 0
        for session, one in sorted(self._ahead.items()):
            capturing = capture_of(one.place.folder)
            if capturing is not None and session not in self._elsewhere() and failures < FAILURES_MAX:
                one.is_settled = True
                try:
                    self._compare(db, session, one, capturing, now_ms)
                except (ExportError, TranscriptError) as error:
                    # A session that cannot be read is one; a store that cannot be is the end.
                    failures += isinstance(error, StoreError)
                    self._fail(error)
            del self._ahead[session]

    def _list(self, db: sqlite3.Connection, now_s: float, now_ms: int) -> None:
        """What changed since it was compared: anything in it, as its end may come after that of its hook."""
        directory, folder = self._folders.popitem()
        try:
            since_ms = destination.captured_since_ms(db, folder)
            if since_ms is None:
                return
            changes = self._store.changes(directory)
            due = {
                name
                for name, changed_ms in changes.items()
                if changed_ms >= since_ms and not self._is_compared(db, name, changed_ms, now_ms)
            }
            for one in self._store.roots(directory, among={name for name in due if not self._is_inside(db, name)}):
                self._ahead.setdefault(one.id, _Ahead(Place(self._destination_id, folder), now_s))
        except ExportError as error:
            self._fail(error)
        except sqlite3.Error:
            self._folders[directory] = folder
            raise

    def _is_inside(self, db: sqlite3.Connection, session: str) -> bool:
        """A subagent that was exported with the session that called it, and is looked at with that one."""
        frozen = ledger.frozen(db, self._destination_id, session)
        return frozen is not None and frozen[0] != session

    def _is_compared(self, db: sqlite3.Connection, session: str, changed_ms: int, now_ms: int) -> bool:
        """A time in the future is from a clock that was ahead, and hides what was written since."""
        return changed_ms <= now_ms and changed_ms == ledger.reconciled_ms(db, self._destination_id, session)

    def _compare(self, db: sqlite3.Connection, session: str, one: _Ahead, capturing: Capture, now_ms: int) -> bool:
        """Whether nothing is left to be looked at again. Raises sqlite3.Error, ExportError, TranscriptError."""
        changed_ms = self._store.changed_ms(session)
        if changed_ms is None or self._is_compared(db, session, changed_ms, now_ms):
            return True
        is_over = one.has_ended or (one.is_settled and is_quiet(changed_ms, now_ms))
        if one.read_ms == changed_ms and not is_over:
            return False
        transcript = self._store.transcript(session)
        if transcript is None:
            return True
        # What is `off` is noted without content whenever it was written.
        since_ms = 0 if capturing.policy.mode == "off" else destination.captured_since_ms(db, one.place.folder) or 0
        missed, is_whole = _missed(db, self._destination_id, transcript, capturing, since_ms)
        noted_ms = min(changed_ms, now_ms)
        done = self._take(transcript, capturing, one.place, only=missed, abandoned=False)
        if not done.waiting:
            ledger.note_reconciled(db, self._destination_id, session, noted_ms, in_part=not is_whole)
            return True
        one.read_ms = changed_ms
        # Asked again, as reading it took its time.
        if not is_over or session in self._elsewhere() or self._store.changed_ms(session) != changed_ms:
            return False
        unfinished = missed & {turn.id for turn in done.waiting}
        self._take(transcript, capturing, one.place, only=unfinished, abandoned=True)
        if one.has_ended:  # of others that is a guess, and the next start looks again
            ledger.note_reconciled(db, self._destination_id, session, noted_ms, in_part=not is_whole)
        return True

    def _fail(self, error: ExportError | TranscriptError) -> None:
        told = f"what OpenCode's store holds could not be compared: {error}"
        if told not in self._told:
            self._told.add(told)
            self._tell(told)


def _is_of(db: sqlite3.Connection, transcript: Transcript | None, folder: str) -> bool:
    """Whether it is stored under this folder; one of another folder may have options of its own there."""
    directory = transcript.session.directory if transcript is not None else ""
    return not directory or destination.fingerprint(db, directory) == folder


def _missed(
    db: sqlite3.Connection, destination_id: int, transcript: Transcript, capturing: Capture, since_ms: int
) -> tuple[set[str], bool]:
    """The turns of which the ledger may hold less than the store, with the session's record where it goes along.

    A turn that ended before `since_ms` counts only where an earlier state of it was captured. Whether every turn is
    among them, or in the ledger.

    What it holds under another policy and is as new stays as it is: a new pattern sends nothing again by itself. Nor
    does a new key or endpoint.
    """
    frozen = ledger.frozen(db, destination_id, transcript.session.id)
    policy = capturing.policy.facts(capturing.user_id if frozen is None else frozen[1].user_id)
    found = ledger.exported(db, destination_id, transcript.session.id)
    known = {one.turn: one for one in found if one.state != "superseded"}
    elsewhere = ledger.exported_elsewhere(db, destination_id, transcript.session.id)

    def is_missed(name: str, facts_ms: int) -> bool:
        one = known.get(name)
        if one is None:
            return facts_ms >= since_ms and elsewhere.get(name, -1) < facts_ms
        return one.facts_ms < facts_ms or one.policy == policy

    missed = {turn.id for turn in transcript.turns if is_missed(turn.id, turn.facts_ms)}
    if missed or (ledger.SESSION_RECORD in known and is_missed(ledger.SESSION_RECORD, 0)):
        missed.add(ledger.SESSION_RECORD)
    # Not to be taken, but to be told of.
    missed |= {one.turn for one in transcript.unreadable if one.turn is not None and one.turn not in known}
    return missed, all(turn.id in known or turn.id in missed for turn in transcript.turns)

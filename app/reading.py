"""Out of OpenCode's store into the ledger: of a session those turns that are not there as they are now.

    outline ─ what differs from what was noted ─▶ transcript (these turns) ─▶ enqueue ─▶ noted
                                                                        └▶ unfinished: waits

One look takes a few turns, the oldest first, so that other sessions need not wait for a long one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

from app import crashpoint, destination, ledger
from app.enqueue import Enqueued, Place
from app.export import Capture
from app.ledger import SESSION_RECORD, TurnRead
from app.opencode import AbsentError, ExportError, Outline, Store, StoreError, TurnOutline
from app.privacy.policy import is_as_strict
from app.transcript import Transcript, TranscriptError

ROWS_MAX = 150
"""Of messages and parts that one look takes, unless a single turn has more."""
REMEMBERED_MAX = 256
"""Sessions of which is kept in memory what was read of them."""
GONE = "sessions gone before they were read"
"""As an incident: deleted, or with a data folder that is not there any more."""
UNDONE = "turns undone before they were read, and not exported, of session"
"""As an incident; the session's id follows."""


class Take(Protocol):
    """Enqueues `only` these turns of a session; as interrupted what is not finished, if it is `abandoned`."""

    def __call__(
        self, transcript: Transcript, capture: Capture, place: Place, *, only: Collection[str], abandoned: bool
    ) -> Enqueued: ...


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a session came to."""

    has_more: bool = False
    """There are turns that it did not get to."""
    is_waiting: bool = False
    """A turn is unfinished."""
    is_whole: bool = True
    """Every turn that was looked at is in the ledger, also what was written before capture began."""
    has_interrupted: bool = False
    """What was unfinished was taken as it is."""


@dataclass(slots=True)
class _Read:
    """What is known of a session's turns."""

    turns: dict[str, TurnRead]
    early: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Those from before capture began that were left out, as they were: (rows, updated_ms)."""
    waiting: dict[str, str | None] = field(default_factory=dict)
    """The unfinished ones, each with the session's last turn then."""
    last: str | None = None
    """From here on there may be new ones. None: all of them are to be looked at."""
    policy: str = ""
    """Under which all of them were looked at."""
    updated_ms: int | None = None
    """When the session's own row was written, as last seen."""


class Reader:
    """Reads sessions of one store for one destination. Methods raise sqlite3.Error, ExportError, TranscriptError."""

    def __init__(self, store: Store, destination_id: int, take: Take) -> None:
        self._store = store
        self._destination_id = destination_id
        self._take = take
        self._read: dict[str, _Read] = {}

    def look(  # noqa: PLR0913 - where, how, and what for
        self,
        db: sqlite3.Connection,
        root: str,
        place: Place,
        capturing: Capture,
        *,
        now_ms: int,
        since_ms: int | None = None,
        whole: bool = False,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Look | None:
        """Take what is new of a session; None when it is not in the store.

        `whole`: also where no notice told of it. With `since_ms` only what was missed: what was written later, or of
        which an earlier state was captured, whatever the policy was. `is_over` is asked about what is unfinished, and
        once more when it was read: whether nobody will finish it.
        """
        frozen = ledger.frozen(db, self._destination_id, root)
        policy = capturing.policy.facts(capturing.user_id if frozen is None else frozen[1].user_id)
        read = self._recall(db, root)
        is_all = whole or read.policy != policy or read.last is None
        outline = self._store.outline(root, since=None if is_all else read.last, also=() if is_all else read.waiting)
        if outline is None:
            del self._read[root]
            return None
        last = outline.turns[-1].turn if outline.turns else None
        over = is_over()
        strict = dict[str, bool]()

        def is_ahead(one: TurnOutline) -> bool:
            noted = read.turns.get(one.turn)
            if noted is None and since_ms is not None and read.early.get(one.turn) == (one.rows, one.updated_ms):
                return over and one.turn in read.waiting
            if noted is None or (noted.rows, noted.updated_ms) != (one.rows, one.updated_ms):
                return True
            if one.turn in read.waiting:
                return over or read.waiting[one.turn] != last
            if since_ms is not None:
                return False
            if noted.policy not in strict:
                strict[noted.policy] = is_as_strict(noted.policy, policy)
            return not strict[noted.policy]

        ahead = [one for one in outline.turns if is_ahead(one)]
        batch = _batch(ahead)
        look = Look()
        if last is not None and (batch or read.updated_ms != outline.updated_ms):
            look = self._take_turns(db, root, place, capturing, outline, batch, policy, now_ms, since_ms, is_over)
        has_more = len(batch) < len(ahead)
        if not has_more:
            read.updated_ms, read.last, read.policy = outline.updated_ms, last, policy
        return replace(look, has_more=has_more, is_waiting=bool(read.waiting))

    def _take_turns(  # noqa: PLR0913 - a part of `look`
        self,
        db: sqlite3.Connection,
        root: str,
        place: Place,
        capturing: Capture,
        outline: Outline,
        batch: list[TurnOutline],
        policy: str,
        now_ms: int,
        since_ms: int | None,
        is_over: Callable[[], bool],
    ) -> Look:
        read, last = self._read[root], outline.turns[-1].turn
        names = {one.turn for one in batch}
        # The last one says whether the person has gone on.
        transcript = self._store.transcript(root, {*names, last})
        crashpoint.reach("notice.read")
        if transcript is None:
            return Look()
        undone = {
            turn.id
            for turn in transcript.turns
            if turn.is_undone and not ledger.has_turn(db, self._destination_id, root, turn.id)
        }
        if undone:
            destination.note_at_most(db, f"{UNDONE} {root}", now_ms, len(undone))
        only = (names | {SESSION_RECORD}) - undone
        early = set[str]()
        if since_ms is not None:
            missed, known = self._missed(db, transcript, policy, since_ms)
            early = only - missed - known - {SESSION_RECORD}
            only &= missed
        done = self._take(transcript, capturing, place, only=only, abandoned=False)
        waiting = names & {turn.id for turn in done.waiting} - undone
        unfinished = [one for one in batch if one.turn in waiting]
        interrupted = bool(unfinished) and is_over() and self._is_unchanged(root, unfinished)
        if interrupted:
            self._take(transcript, capturing, place, only=only & waiting, abandoned=True)
            waiting = set()
        noted = {one.turn: TurnRead(one.rows, one.updated_ms, policy) for one in batch}
        read.turns |= {name: one for name, one in noted.items() if name not in early}
        read.early |= {name: (one.rows, one.updated_ms) for name, one in noted.items() if name in early}
        read.waiting = {name: turn for name, turn in read.waiting.items() if name not in names}
        read.waiting |= dict.fromkeys(waiting, last)
        kept = {name: one for name, one in noted.items() if name not in early | waiting | undone}
        ledger.note_turns_read(db, self._destination_id, root, kept)
        return Look(is_whole=not early, has_interrupted=interrupted)

    def _is_unchanged(self, root: str, turns: list[TurnOutline]) -> bool:
        """Whether these are as before: reading them took its time."""
        names = [one.turn for one in turns]
        now = self._store.outline(root, since=names[-1], also=names)
        return now is not None and set(turns) <= set(now.turns)

    def _missed(
        self, db: sqlite3.Connection, transcript: Transcript, policy: str, since_ms: int
    ) -> tuple[set[str], set[str]]:
        """The turns of which the ledger may hold less than the store, with the session's record where it goes along.

        And all that it knows of the session.

        What it holds under another policy and is as new stays as it is: a new pattern sends nothing again by itself.
        Nor does a new key or endpoint.
        """
        session = transcript.session.id
        known = ledger.current_turns(db, self._destination_id, session)
        elsewhere = ledger.exported_elsewhere(db, self._destination_id, session)

        def is_missed(name: str, facts_ms: int) -> bool:
            one = known.get(name)
            if one is None:
                return facts_ms >= since_ms and elsewhere.get(name, -1) < facts_ms
            return one.facts_ms < facts_ms or one.policy == policy

        missed = {turn.id for turn in transcript.turns if is_missed(turn.id, turn.facts_ms)}
        if missed or (SESSION_RECORD in known and is_missed(SESSION_RECORD, 0)):
            missed.add(SESSION_RECORD)
        # Not to be taken, but to be told of.
        unreadable = {one.turn for one in transcript.unreadable if one.turn is not None and one.turn not in known}
        return missed | unreadable, set(known)

    def _recall(self, db: sqlite3.Connection, root: str) -> _Read:
        found = self._read.pop(root, None)
        self._read[root] = found or _Read(ledger.turns_read(db, self._destination_id, root))
        while len(self._read) > REMEMBERED_MAX:
            del self._read[next(iter(self._read))]
        return self._read[root]

    def is_known(self, root: str) -> bool:
        """Whether it was looked at before, to its end."""
        return root in self._read and self._read[root].last is not None


def _batch(ahead: list[TurnOutline]) -> list[TurnOutline]:
    rows, taken = 0, list[TurnOutline]()
    for one in ahead:
        rows += one.rows
        if taken and rows > ROWS_MAX:
            break
        taken.append(one)
    return taken


def reason_of(error: ExportError | TranscriptError) -> str:
    """Why a session cannot be read now, in words that are kept: without its text, and without a path."""
    match error:
        case AbsentError():
            return "OpenCode's store is not there"
        case StoreError():
            return "OpenCode's store cannot be read"
        case _:
            return "the session cannot be read"

"""Session reader: compares a session in OpenCode's store with the ledger, and enqueues the turns that are new.

    outline ─ what differs from what was noted ─▶ transcript (these turns) ─▶ enqueue ─▶ noted
                                                                        └▶ unfinished: waits

One look takes a few turns, the oldest first, so that other sessions need not wait for a long one. Where these are large
it only reads them, and the next ones make them ready (`GradualRedaction`) and take them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from app.capture.enqueue import Enqueued, Place, Request, decisions_on, enqueue
from app.capture.redact_ahead import GradualRedaction, is_large
from app.database.connection import Ledger, flushed_together
from app.errors import ExportError
from app.ledger import history, incidents, notices, versions
from app.ledger.decision import WANTED
from app.ledger.job import SESSION_RECORD
from app.ledger.notices import TurnRead
from app.privacy.policy import is_as_strict
from app.privacy.terms import Capture
from app.runtime import failpoint
from app.sources.opencode.access import AbsentError, InMemoryError, StoreError
from app.sources.opencode.store import Store
from app.sources.opencode.turns import Outline, TurnOutline
from app.transcript import parse as parse  # noqa: PLC0414 - loaded with this, as an installer may exchange it later
from app.transcript.model import Transcript, TranscriptError

ROWS_MAX = 150
"""Of messages and parts that one look takes, unless a single turn has more."""
REMEMBERED_MAX = 256
"""Sessions of which is kept in memory what was read of them."""
FAILURES_MAX = 3
"""So many tries to read the store that fail end the last looks."""
GONE_TURNS = "turns gone before they were read"
"""As an incident: deleted between two looks."""
UNDONE = "turns undone before they were read, and not exported, of session"
"""As an incident; the session's id follows."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a session came to."""

    has_more: bool = False
    """There are turns that it did not get to."""
    is_waiting: bool = False
    """A turn is unfinished."""
    is_whole: bool = True
    """Nothing was left out, also of what was written before capture began."""
    has_interrupted: bool = False
    """What was unfinished was taken as it is."""


@dataclass(slots=True)
class _Read:
    """What is known of a session's turns."""

    turns: dict[str, TurnRead]
    early: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Those from before capture began that were left out, as they were: (rows, updated_ms)."""
    waiting: dict[str, tuple[str | None, bool]] = field(default_factory=dict)
    """The unfinished ones, each with the session's last turn then, and whether nobody was to finish it."""
    began_ms: int | None = None
    """The first of the looks that have not got to the end; None: the last one has."""
    outline: Outline | None = None
    left: list[TurnOutline] = field(default_factory=list)
    """What they have not got to, of this outline."""
    has_interrupted: bool = False
    """They, or the last one."""
    last: str | None = None
    """From here on there may be new ones. None: all of them are to be looked at."""
    policy: str = ""
    """Under which all of them were looked at."""
    updated_ms: int | None = None
    """When the session's own row was written, as last seen."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """How a session is to be read."""

    folder: str
    capturing: Capture
    now_ms: int
    changed_ms: int | None = None
    """When the session was written, as told before it is read: noted where nothing is left to be taken of it."""
    since_ms: int | None = None
    """Only what was missed is taken: what was written later, or of which an earlier state was captured, whatever the
    policy was."""
    whole: bool = False
    """All of its turns are looked at."""
    again: bool = False
    """What was unfinished is read, if it looks as before, too."""
    is_over: bool = False
    """Nobody here will finish what is unfinished; whether somebody elsewhere may is asked before and after reading."""


class Reader:
    """Reads sessions of one store for one destination. Methods raise sqlite3.Error, ExportError, TranscriptError."""

    def __init__(  # noqa: PLR0913 - of what, for whom, and who is told
        self,
        db: Ledger,
        store: Store,
        destination_id: int,
        *,
        wake: Callable[[str], None],
        elsewhere: Callable[[], Collection[object]],
        before: Callable[[str], None] = lambda _: None,
        after: Callable[[str, Enqueued], None] = lambda *_: None,
        begun_ms: int = 0,
    ) -> None:
        """`elsewhere` tells the sessions that another live OpenCode has open.

        `before` is told of a session of which something is about to become jobs, `after` what it became. Turns that
        ended before `begun_ms` are not taken, unless a version of them was.
        """
        self.begun_ms = begun_ms
        self._db = db
        self._store = store
        self._destination_id = destination_id
        self._wake = wake
        self._elsewhere = elsewhere
        self._before = before
        self._after = after
        self._read: dict[str, _Read] = {}
        self._being_redacted: tuple[_Read, GradualRedaction] | None = None
        """What was read and is to be taken; of one session at a time, as it is large."""

    def look(self, root: str, request: ReadRequest) -> Look | None:
        """Take what is new of a session; None when it is not in the store."""
        known = versions.session_identity(self._db, self._destination_id, root)
        capturing = request.capturing
        policy = capturing.policy.facts(capturing.user_id if known is None else known[1].user_id)
        look = self._look(root, request, policy)
        # What was interrupted is a guess, and the next start looks again.
        is_settled = look is not None and not (look.has_more or look.is_waiting or look.has_interrupted)
        if look is not None and is_settled and request.changed_ms is not None:
            noted_ms = min(request.changed_ms, request.now_ms)
            history.note_reconciled(self._db, self._destination_id, root, noted_ms, in_part=not look.is_whole)
        return look

    def _place(self, request: ReadRequest) -> Place:
        return Place(self._destination_id, request.folder)

    def _is_over(self, root: str, request: ReadRequest) -> bool:
        return request.is_over and root not in self._elsewhere()

    def _look(self, root: str, request: ReadRequest, policy: str) -> Look | None:
        read = self._recall(root)
        outline, to_read, is_further = read.outline, read.left, read.began_ms is not None
        if outline is None or not to_read:  # when all is taken, what was written meanwhile
            is_all = is_further or request.whole or read.policy != policy or read.last is None
            is_all = is_all or (request.since_ms is None and bool(read.early))
            also = () if is_all else read.waiting
            outline = self._store.outline(root, since=None if is_all else read.last, also=also)
            if outline is None:
                del self._read[root]
                return None
            request = replace(request, again=request.again and not is_further)
            then = _last(outline), self._is_over(root, request)
            to_read = [one for one in outline.turns if _is_to_be_read(one, read, then, request, policy)]
        batch = _batch(to_read)
        read.has_interrupted &= is_further
        left = to_read[len(batch) :]
        if outline.turns and (batch or read.updated_ms != outline.updated_ms):
            found = self._transcript(read, outline, batch, request)
            if found is None:
                left = to_read
            else:
                transcript, capturing = found
                if transcript is None:
                    del self._read[root]
                    return None
                self._take_turns(transcript, outline, batch, replace(request, capturing=capturing), policy)
                read.updated_ms = outline.updated_ms
        has_more = bool(left or read.left)
        read.began_ms = request.now_ms if read.began_ms is None else read.began_ms
        read.outline, read.left = outline, left
        if not has_more:
            # What was written in this very moment, or by a clock that was ahead, may be written again at that time.
            read.turns = {name: one for name, one in read.turns.items() if one.updated_ms < read.began_ms - 1}
            read.last, read.policy, read.began_ms, read.outline = _last(outline), policy, None, None
        return Look(has_more, bool(read.waiting), is_whole=not read.early, has_interrupted=read.has_interrupted)

    def _transcript(
        self, read: _Read, outline: Outline, batch: list[TurnOutline], request: ReadRequest
    ) -> tuple[Transcript | None, Capture] | None:
        """What is to be taken, and how; None: not yet, it is large, and held until it is ready."""
        if self._being_redacted is not None and self._being_redacted[0] is read:
            _, redaction = self._being_redacted
            if redaction.is_under(request.capturing):
                ready = redaction.step()
                if ready is None:
                    return None
                self._being_redacted = None
                return redaction.transcript, ready
            self._being_redacted = None
        names = {one.turn for one in batch}
        # The last one says whether the person has gone on.
        found = self._store.transcript(outline.session, {*names, outline.turns[-1].turn})
        failpoint.reach("notice.read")
        if found is not None and is_large(found, names):
            told = decisions_on(self._db, found, request.capturing, self._place(request))
            new = names & {export.turn for export, decision in told if decision in WANTED}
            if new and self._being_redacted is None:
                self._being_redacted = read, GradualRedaction(found, new, request.capturing)
                return None
            if new:
                self._being_redacted = None  # that is read again: two of them would take twice the memory
        return found, request.capturing

    def _take_turns(
        self, transcript: Transcript, outline: Outline, batch: list[TurnOutline], request: ReadRequest, policy: str
    ) -> None:
        root, read = outline.session, self._read[outline.session]
        names = {one.turn for one in batch}
        self._count_gone(transcript, names, request.now_ms)
        undone = self._undone(transcript, request.now_ms)
        only, early = (names | {SESSION_RECORD}) - undone, set[str]()
        only -= self._from_before(transcript)
        if request.since_ms is not None:
            missed, known = self._missed(transcript, policy, request.since_ms)
            early = only - missed - known - {SESSION_RECORD}
            only &= missed
        is_told = notices.has_turn(self._db, self._destination_id, root, SESSION_RECORD)
        if not is_told and not any(turn.final for turn in transcript.turns):
            # Its own record goes with its first turn: until that has ended OpenCode has not named it yet.
            only -= {SESSION_RECORD}
        done = self._enqueue(transcript, request, only, abandoned=False)
        waiting = names & {turn.id for turn in done.waiting} - undone
        unfinished = [one for one in batch if one.turn in waiting]
        is_over = bool(unfinished) and self._is_over(root, request)
        if is_over and self._is_unchanged(root, unfinished):
            ended = (only & waiting) | {SESSION_RECORD}
            self._enqueue(transcript, request, ended, abandoned=True)
            waiting, read.has_interrupted = set(), True
        noted = {one.turn: TurnRead(one.rows, one.updated_ms, policy) for one in batch}
        read.turns |= {name: one for name, one in noted.items() if name not in early}
        read.early = {name: one for name, one in read.early.items() if name not in names}
        read.early |= {name: (one.rows, one.updated_ms) for name, one in noted.items() if name in early}
        read.waiting = {name: then for name, then in read.waiting.items() if name not in names}
        read.waiting |= dict.fromkeys(waiting, (_last(outline), is_over))
        left = early | waiting | undone
        kept = {name: one for name, one in noted.items() if name not in left and one.updated_ms < request.now_ms - 1}
        notices.note_turns_read(self._db, self._destination_id, root, kept)

    def _from_before(self, transcript: Transcript) -> set[str]:
        """The turns that were there before the destination was."""
        root = transcript.session.id
        return {
            turn.id
            for turn in transcript.turns
            if turn.last_event_ms < self.begun_ms
            and not notices.has_turn(self._db, self._destination_id, root, turn.id)
        }

    def _enqueue(
        self, transcript: Transcript, request: ReadRequest, only: Collection[str], *, abandoned: bool
    ) -> Enqueued:
        """Enqueue `only` these turns; as interrupted what is not finished, if it is `abandoned`."""
        self._before(transcript.session.id)
        with flushed_together(self._db):
            done = enqueue(
                self._db,
                transcript,
                request.capturing,
                self._place(request),
                now_ms=request.now_ms,
                wake=self._wake,
                request=Request(only=only, abandoned=abandoned),
            )
        self._after(transcript.session.id, done)
        return done

    def _count_gone(self, transcript: Transcript, names: Collection[str], now_ms: int) -> None:
        """Of the turns that were looked through those that were deleted since, and before any of them was read."""
        root = transcript.session.id
        missing = set(names) - {turn.id for turn in transcript.turns}
        gone = [
            name
            for name in missing
            if not self._store.holds(root, name) and not notices.has_turn(self._db, self._destination_id, root, name)
        ]
        if gone:
            incidents.note(self._db, GONE_TURNS, now_ms, len(gone))

    def _undone(self, transcript: Transcript, now_ms: int) -> set[str]:
        """The turns that were taken back before any of them was read: they are not exported, and that is said."""
        root = transcript.session.id
        undone = {
            turn.id
            for turn in transcript.turns
            if turn.is_undone and not notices.has_turn(self._db, self._destination_id, root, turn.id)
        }
        if undone:
            incidents.note_at_most(self._db, f"{UNDONE} {root}", now_ms, len(undone))
        return undone

    def _is_unchanged(self, root: str, turns: list[TurnOutline]) -> bool:
        """Whether these are as before: reading them took its time."""
        names = [one.turn for one in turns]
        now = self._store.outline(root, since=names[-1], also=names)
        return now is not None and set(turns) <= set(now.turns)

    def _missed(self, transcript: Transcript, policy: str, since_ms: int) -> tuple[set[str], set[str]]:
        """The turns of which the ledger may hold less than the store, with the session's record where it goes along.

        And all that it knows of the session.

        What it holds under another policy and is as new stays as it is: a new pattern sends nothing again by itself.
        Nor does a new key or endpoint.
        """
        session = transcript.session.id
        known = history.current_turns(self._db, self._destination_id, session)
        elsewhere = history.exported_elsewhere(self._db, self._destination_id, session)

        def is_missed(name: str, last_event_ms: int) -> bool:
            one = known.get(name)
            if one is None:
                return last_event_ms >= since_ms and elsewhere.get(name, -1) < last_event_ms
            return one.last_event_ms < last_event_ms or one.policy == policy

        missed = {turn.id for turn in transcript.turns if is_missed(turn.id, turn.last_event_ms)}
        if missed or (SESSION_RECORD in known and is_missed(SESSION_RECORD, 0)):
            missed.add(SESSION_RECORD)
        # Not to be taken, but to be told of.
        unreadable = {one.turn for one in transcript.unreadable if one.turn is not None and one.turn not in known}
        return missed | unreadable, set(known)

    def _recall(self, root: str) -> _Read:
        found = self._read.pop(root, None)
        self._read[root] = found or _Read(notices.turns_read(self._db, self._destination_id, root))
        while len(self._read) > REMEMBERED_MAX:
            del self._read[next(iter(self._read))]
        return self._read[root]

    def go_on_from(self, other: Reader) -> None:
        """Take over what the other has read: it went with its spool, as somebody wanted, and is not read again."""
        self._read = other._read

    def let_go(self) -> None:
        """Drop what was made ready: it may not be wanted any more, and is read again where it is."""
        self._being_redacted = None

    def forget(self) -> None:
        """Forget what was left to another session: it may be wanted now."""
        self._read.clear()

    def is_known(self, root: str) -> bool:
        """Whether it was looked at before, to its end."""
        return root in self._read and self._read[root].last is not None


def _is_to_be_read(
    one: TurnOutline, read: _Read, then: tuple[str | None, bool], request: ReadRequest, policy: str
) -> bool:
    """Whether a turn is to be read: it is new or has changed, or waits, or a stricter policy is in force."""
    noted, found = read.turns.get(one.turn), (one.rows, one.updated_ms)
    left = read.early.get(one.turn) if request.since_ms is not None else None
    if found != (left if noted is None else (noted.rows, noted.updated_ms)):
        return True
    if one.turn in read.waiting:
        return request.again or read.waiting[one.turn] != then
    if noted is None or request.since_ms is not None:
        return False  # reconciling sends nothing again for another policy
    return noted.policy != policy and not is_as_strict(noted.policy, policy)


def _last(outline: Outline) -> str | None:
    return outline.turns[-1].turn if outline.turns else None


def _batch(to_read: list[TurnOutline]) -> list[TurnOutline]:
    rows, taken = 0, list[TurnOutline]()
    for one in to_read:
        rows += one.rows
        if taken and rows > ROWS_MAX:
            break
        taken.append(one)
    return taken


def reason_of(error: ExportError | TranscriptError) -> str:
    """Why a session cannot be read now, in words that are kept: without its text, and without a path."""
    match error:
        case InMemoryError():
            return "OpenCode keeps its store in memory, where nobody can read it"
        case AbsentError():
            return "OpenCode's store is not there"
        case StoreError():
            return "OpenCode's store cannot be read"
        case _:
            return "the session cannot be read"

"""What OpenCode's store holds and no notice led to: turns of an OpenCode that was killed, or ran without its plugin.

    a folder is captured ─▶ its sessions that changed since they were last compared, and what a dead hook still owed:
    `session_reader`, one at a time ─▶ all of it is in the ledger: noted, and not read again until it changes
                                    └▶ a turn is unfinished: until it is finished or nobody can finish it

What was written before capture of the folder began is for `backfill`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from app.capture.enqueue import Place
from app.capture.notices import AGAIN_S
from app.capture.session_reader import FAILURES_MAX, GONE, Reader, reason_of
from app.ledger import folders, history, incidents, notices, versions
from app.privacy.terms import Capture
from app.sources.opencode.access import StoreError
from app.sources.opencode.export_files import ExportError
from app.sources.opencode.store import Store
from app.transcript.model import TranscriptError

QUIET_MS = 600_000
"""An unfinished turn that no hook owns, in a session that was not written to for so long, is taken for abandoned."""
SETTLE_S = 3.0
"""Between two looks that both see no owner: one that makes way for a newer version is away for half a second."""
OWED_MS_MAX = 30 * 86_400_000
"""Of another store: a notice that nobody could read for so long is of one that is gone."""


def is_quiet(changed_ms: int, now_ms: int) -> bool:
    """Whether nobody is at a session that was written to then. A time in the future is from a clock that was ahead."""
    return abs(now_ms - changed_ms) >= QUIET_MS


@dataclass(slots=True)
class _Ahead:
    """A session that is to be looked at."""

    place: Place
    due_s: float
    owed: dict[str, int] = field(default_factory=dict)
    """What settles the notices of a hook that is gone: then it is read as whole as that one would have."""
    unowned_s: float | None = None
    """Since when nobody was seen to have it open."""
    is_settled: bool = False
    read_ms: int | None = None
    """What OpenCode had written when it was last read."""
    has_more: bool = False
    """The last look did not get to its end."""


class Reconciling:
    """Looks at one session at a time, so that a live line never waits for more than that."""

    def __init__(
        self,
        store: Store,
        store_name: str,
        reader: Reader,
        destination_id: int,
        *,
        elsewhere: Callable[[], Collection[object]],
        inherit: Callable[[str, Mapping[str, int]], None] = lambda *_: None,
        tell: Callable[[str], None],
    ) -> None:
        """`store_name` is what notices know the store by. `elsewhere` tells what another live OpenCode has open.

        `inherit` is given what a dead hook owed inside of a session that our own OpenCode has open.
        """
        self._store = store
        self._store_name = store_name
        self._reader = reader
        self._destination_id = destination_id
        self._elsewhere = elsewhere
        self._inherit = inherit
        self._tell = tell
        self._folders: dict[str, tuple[str, float]] = {}
        """Not yet listed: by directory, as the ledger knows it, and when it is due."""
        self._ahead: dict[str, _Ahead] = {}

    def begin(self, directory: str, folder: str) -> None:
        """Look at the sessions of a folder, from the next step on."""
        if directory.encode(errors="ignore").decode() == directory:  # else no store holds it
            self._folders[directory] = folder, 0

    def is_due(self, now_s: float) -> bool:
        """Whether `step` has something to do. `now_s` is monotonic."""
        return bool(self._due_folders(now_s)) or any(one.due_s <= now_s for one in self._ahead.values())

    def _due_folders(self, now_s: float) -> list[str]:
        return [directory for directory, (_, due_s) in self._folders.items() if due_s <= now_s]

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
        open: notices tell of them.
        """
        if folders := self._due_folders(now_s):
            self._list(db, folders[0], ours, now_s, now_ms)
            return
        session, one = next((name, one) for name, one in self._ahead.items() if one.due_s <= now_s)
        capturing = capture_of(one.place.folder)
        if session in ours:
            self._inherit(session, one.owed)
        if capturing is None or session in ours:
            self._reader.let_go()
            del self._ahead[session]
            return
        is_first = one.unowned_s is None
        if session in self._elsewhere():
            one.unowned_s = None
        elif one.unowned_s is None:
            one.unowned_s = now_s
        one.is_settled = one.unowned_s is not None and now_s - one.unowned_s >= SETTLE_S
        one.due_s = now_s + (SETTLE_S if is_first and one.unowned_s is not None else AGAIN_S)
        try:
            is_done = one.unowned_s is not None and self._compare(db, session, one, capturing, now_ms)
        except (ExportError, TranscriptError) as error:
            self._fail(db, error, one.owed)
            for other in self._ahead.values() if isinstance(error, StoreError) else (one,):
                other.due_s = max(other.due_s, now_s + AGAIN_S)
            self._ahead[session] = self._ahead.pop(session)  # the others first
            return
        if is_done:
            del self._ahead[session]
        elif one.has_more:
            one.due_s = now_s

    def last_looks(
        self, db: sqlite3.Connection, capture_of: Callable[[str], Capture | None], *, now_s: float, now_ms: int
    ) -> None:
        """All that is ahead, once, now that no line will come any more. Raises sqlite3.Error, to be tried again."""
        for directory in list(self._folders):
            self._list(db, directory, (), now_s, now_ms)
        failures = 0
        for session, one in sorted(self._ahead.items()):
            capturing = capture_of(one.place.folder)
            if capturing is not None and session not in self._elsewhere() and failures < FAILURES_MAX:
                one.is_settled = True
                try:
                    while not self._compare(db, session, one, capturing, now_ms) and one.has_more:
                        pass
                except (ExportError, TranscriptError) as error:
                    # A session that cannot be read is one; a store that cannot be is the end.
                    failures += isinstance(error, StoreError)
                    self._fail(db, error, one.owed)
            del self._ahead[session]

    def _list(self, db: sqlite3.Connection, directory: str, ours: Collection[str], now_s: float, now_ms: int) -> None:
        """What changed since it was compared: anything in it, as its end may come after that of its hook."""
        folder, _ = self._folders[directory]
        since_ms = folders.captured_since_ms(db, folder)
        if since_ms is not None:
            if old := notices.forget_notices(db, self._store_name, now_ms - OWED_MS_MAX):
                incidents.note(db, GONE, now_ms, old)
            alive = {*self._elsewhere(), *ours}
            owed = {name: one for name, one in notices.open_notices(db, self._store_name).items() if name not in alive}
            try:
                changes = self._store.changes(directory)
                due = {
                    name
                    for name, changed_ms in changes.items()
                    if changed_ms >= since_ms
                    and not self._is_compared(db, name, changed_ms, now_ms)
                    and not self._is_inside(db, name)
                }
                ahead = {one.id: dict[str, int]() for one in self._store.roots(directory, among=due)}
            except ExportError as error:
                self._fail(db, error, [name for name, (_, of) in owed.items() if of == folder])
                self._folders[directory] = folder, now_s + AGAIN_S
                return
            is_whole = self._add_owed(db, ahead, owed, folder, changes, now_ms)
            for root, marks in ahead.items():
                one = self._ahead.setdefault(root, _Ahead(Place(self._destination_id, folder), now_s))
                one.owed |= marks
            if not is_whole:
                self._folders[directory] = folder, now_s + AGAIN_S
                return
        del self._folders[directory]

    def _add_owed(
        self,
        db: sqlite3.Connection,
        ahead: dict[str, dict[str, int]],
        owed: Mapping[str, tuple[int, str]],
        folder: str,
        changes: Collection[str],
        now_ms: int,
    ) -> bool:
        """What was noticed, to the sessions inside which it is shown; False where one of a folder's cannot be read."""
        is_whole = True
        for name, (mark, of) in owed.items():
            try:
                root = self._store.root_of(name)
            except ExportError as error:
                if of == folder:
                    self._fail(db, error, [name])
                    is_whole = False
                continue
            if root is None and notices.settle_notices(db, self._store_name, {name: mark}):
                incidents.note(db, GONE, now_ms)
            elif root is not None and (of == folder or root in changes):
                ahead.setdefault(root, {})[name] = mark
        return is_whole

    def _is_inside(self, db: sqlite3.Connection, session: str) -> bool:
        """A subagent that was exported with the session that called it, and is looked at with that one."""
        frozen = versions.frozen(db, self._destination_id, session)
        return frozen is not None and frozen[0] != session

    def _is_compared(self, db: sqlite3.Connection, session: str, changed_ms: int, now_ms: int) -> bool:
        """A time in the future is from a clock that was ahead, and hides what was written since."""
        return changed_ms <= now_ms and changed_ms == history.reconciled_ms(db, self._destination_id, session)

    def _compare(self, db: sqlite3.Connection, session: str, one: _Ahead, capturing: Capture, now_ms: int) -> bool:
        """Whether nothing is left to be looked at again. Raises sqlite3.Error, ExportError, TranscriptError."""
        changed_ms = self._store.changed_ms(session)
        if changed_ms is None:
            return self._give_up(db, one, now_ms)
        if not one.owed and self._is_compared(db, session, changed_ms, now_ms):
            return True
        is_over = one.is_settled and is_quiet(changed_ms, now_ms)
        if one.read_ms == changed_ms and not is_over:
            return False
        # What is `off` is noted without content whenever it was written.
        is_all = one.owed or capturing.policy.mode == "off"
        since_ms = None if is_all else folders.captured_since_ms(db, one.place.folder) or 0
        look = self._reader.look(
            db,
            session,
            one.place,
            capturing,
            now_ms=now_ms,
            since_ms=since_ms,
            whole=True,
            is_over=lambda: is_over and session not in self._elsewhere(),
        )
        one.has_more = look is not None and look.has_more
        if look is None:
            return self._give_up(db, one, now_ms)
        if look.has_more or look.is_waiting:
            one.read_ms = None if look.has_more else changed_ms
            return False
        if not look.has_interrupted:  # that is a guess, and the next start looks again
            noted_ms = min(changed_ms, now_ms)
            history.note_reconciled(db, self._destination_id, session, noted_ms, in_part=not look.is_whole)
        return self._settle(db, one)

    def _settle(self, db: sqlite3.Connection, one: _Ahead) -> bool:
        self._reader.let_go()
        if one.owed:
            notices.settle_notices(db, self._store_name, one.owed)
        return True

    def _give_up(self, db: sqlite3.Connection, one: _Ahead, now_ms: int) -> bool:
        """The session is not there any more."""
        if one.owed and (gone := notices.settle_notices(db, self._store_name, one.owed)):
            incidents.note(db, GONE, now_ms, gone)
        return True

    def _fail(self, db: sqlite3.Connection, error: ExportError | TranscriptError, owed: Collection[str]) -> None:
        notices.note_wait(db, self._store_name, owed, reason_of(error))
        self._tell(f"what OpenCode's store holds could not be compared: {error}")

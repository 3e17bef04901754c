"""Reconcile: finds turns in OpenCode's store that no notice led to (OpenCode was killed, or ran without its plugin).

    a folder is captured ─▶ its sessions that changed since they were last compared, and what a dead hook still owed:
        read, one at a time ─▶ all of it is in the ledger: noted, and not read again until it changes
                            └▶ a turn is unfinished: looked at again, until it is finished or nobody can finish it

What was written before capture of the folder began is for `backfill`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from app.capture.notices import AGAIN_S
from app.capture.owed import Owed
from app.capture.session_reader import FAILURES_MAX, Reader, ReadRequest, reason_of
from app.database.connection import Ledger
from app.errors import ExportError
from app.ledger import folders, history, versions
from app.privacy.terms import Capture
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store
from app.transcript.model import TranscriptError

QUIET_MS = 600_000
"""An unfinished turn that no hook owns, in a session that was not written to for so long, is taken for abandoned."""
SETTLE_S = 3.0
"""Between two looks that both see no owner: one that makes way for a newer version is away for half a second."""


def is_quiet(changed_ms: int, now_ms: int) -> bool:
    """Whether nobody is at a session that was written to then. A time in the future is from a clock that was ahead."""
    return abs(now_ms - changed_ms) >= QUIET_MS


@dataclass(frozen=True, slots=True)
class NextLook:
    """When a session is looked at. Times are of a clock that never goes back."""

    due_s: float
    unowned_s: float | None = None
    """Since when nobody was seen to have it open."""

    def is_settled(self, now_s: float) -> bool:
        """Whether nobody will come back to it."""
        return self.unowned_s is not None and now_s - self.unowned_s >= SETTLE_S


def next_look(look: NextLook, *, is_owned: bool, now_s: float) -> NextLook:
    """The look after this one, should this one not get to the end; `is_owned`: somebody is seen to have it open."""
    if is_owned:
        return NextLook(now_s + AGAIN_S)
    if look.unowned_s is None:
        return NextLook(now_s + SETTLE_S, now_s)
    return NextLook(now_s + AGAIN_S, look.unowned_s)


@dataclass(slots=True)
class _Ahead:
    """A session that is to be looked at."""

    folder: str
    look: NextLook
    owed: dict[str, int] = field(default_factory=dict)
    """What settles the notices of a hook that is gone: then it is read as whole as that one would have."""
    read_ms: int | None = None
    """What OpenCode had written when it was last read."""


_Result: TypeAlias = Literal["done", "more", "later"]
"""Of a comparison: nothing is left, there are turns that it did not get to, one is not finished."""


class Reconciler:
    """Looks at one session at a time, so that a live line never waits for more than that.

    Methods raise sqlite3.Error, to be tried again.
    """

    def __init__(  # noqa: PLR0913 - what is compared with what, and who else is told
        self,
        db: Ledger,
        store: Store,
        destination_id: int,
        owed: Owed,
        reader: Reader,
        *,
        elsewhere: Callable[[], Collection[object]],
        inherit: Callable[[str, Mapping[str, int]], None] = lambda *_: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`elsewhere` tells what another live OpenCode has open.

        `inherit` is given what a dead hook owed inside of a session that our own OpenCode has open.
        """
        self._db = db
        self._store = store
        self._destination_id = destination_id
        self._owed = owed
        self._reader = reader
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
        return bool(self._due_folders(now_s)) or any(one.look.due_s <= now_s for one in self._ahead.values())

    def _due_folders(self, now_s: float) -> list[str]:
        return [directory for directory, (_, due_s) in self._folders.items() if due_s <= now_s]

    def step(
        self, capture_of: Callable[[str], Capture | None], ours: Collection[str], *, now_s: float, now_ms: int
    ) -> None:
        """List a folder, or look at a session.

        `capture_of` a folder is None where it is not captured now. `ours` are the sessions that our own OpenCode has
        open: notices tell of them.
        """
        if directories := self._due_folders(now_s):
            self._list(directories[0], ours, now_s, now_ms)
            return
        session, one = next((name, one) for name, one in self._ahead.items() if one.look.due_s <= now_s)
        capturing = capture_of(one.folder)
        if session in ours:
            self._inherit(session, one.owed)
        if capturing is None or session in ours:
            self._reader.let_go()
            del self._ahead[session]
            return
        is_owned = session in self._elsewhere()
        one.look = next_look(one.look, is_owned=is_owned, now_s=now_s)
        try:
            is_settled = one.look.is_settled(now_s)
            result = "later" if is_owned else self._compare(session, one, capturing, now_ms, is_settled=is_settled)
        except (ExportError, TranscriptError) as error:
            self._fail(error, one.owed)
            for other in self._ahead.values() if isinstance(error, StoreError) else (one,):
                other.look = replace(other.look, due_s=max(other.look.due_s, now_s + AGAIN_S))
            self._ahead[session] = self._ahead.pop(session)  # the others first
            return
        if result == "done":
            del self._ahead[session]
        elif result == "more":
            one.look = replace(one.look, due_s=now_s)

    def last_looks(self, capture_of: Callable[[str], Capture | None], *, now_s: float, now_ms: int) -> None:
        """All that is ahead, once, now that no line will come any more."""
        for directory in list(self._folders):
            self._list(directory, (), now_s, now_ms)
        failures = 0
        for session, one in sorted(self._ahead.items()):
            capturing = capture_of(one.folder)
            if capturing is not None and session not in self._elsewhere() and failures < FAILURES_MAX:
                try:
                    while self._compare(session, one, capturing, now_ms, is_settled=True) == "more":
                        pass
                except (ExportError, TranscriptError) as error:
                    # A session that cannot be read is one; a store that cannot be is the end.
                    failures += isinstance(error, StoreError)
                    self._fail(error, one.owed)
            del self._ahead[session]

    def _list(self, directory: str, ours: Collection[str], now_s: float, now_ms: int) -> None:
        """What changed since it was compared: anything in it, as its end may come after that of its hook."""
        folder, _ = self._folders[directory]
        since_ms = self._since_ms(folder)
        if since_ms is not None and not self._add_folder(directory, folder, since_ms, ours, now_s, now_ms):
            self._folders[directory] = folder, now_s + AGAIN_S
        else:
            del self._folders[directory]

    def _since_ms(self, folder: str) -> int | None:
        """Since when a folder is captured for this destination; None where it is not."""
        since_ms = folders.captured_since_ms(self._db, folder)
        return None if since_ms is None else max(since_ms, self._reader.begun_ms)

    def _add_folder(
        self, directory: str, folder: str, since_ms: int, ours: Collection[str], now_s: float, now_ms: int
    ) -> bool:
        """Put the folder's sessions ahead; False where some of it cannot be read now."""
        self._owed.give_up_other_stores(now_ms)
        alive = {*self._elsewhere(), *ours}
        owed = {name: one for name, one in self._owed.all().items() if name not in alive}
        try:
            changes = self._store.changes(directory)
            due = {
                name
                for name, changed_ms in changes.items()
                if changed_ms >= since_ms
                and not self._is_compared(name, changed_ms, now_ms)
                and not self._is_inside(name)
            }
            ahead = {one.id: dict[str, int]() for one in self._store.roots(directory, among=due)}
        except ExportError as error:
            self._fail(error, [name for name, (_, of) in owed.items() if of == folder])
            return False
        is_whole = self._add_owed(ahead, owed, folder, changes, now_ms)
        for root, marks in ahead.items():
            self._ahead.setdefault(root, _Ahead(folder, NextLook(now_s))).owed |= marks
        return is_whole

    def _add_owed(
        self,
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
                    self._fail(error, [name])
                    is_whole = False
                continue
            if root is None:
                self._owed.give_up({name: mark}, now_ms)
            elif of == folder or root in changes:
                ahead.setdefault(root, {})[name] = mark
        return is_whole

    def _is_inside(self, session: str) -> bool:
        """A subagent that was exported with the session that called it, and is looked at with that one."""
        known = versions.session_identity(self._db, self._destination_id, session)
        return known is not None and known[0] != session

    def _is_compared(self, session: str, changed_ms: int, now_ms: int) -> bool:
        """A time in the future is from a clock that was ahead, and hides what was written since."""
        return changed_ms <= now_ms and changed_ms == history.reconciled_ms(self._db, self._destination_id, session)

    def _compare(self, session: str, one: _Ahead, capturing: Capture, now_ms: int, *, is_settled: bool) -> _Result:
        """What is left of the session after a look. Raises sqlite3.Error, ExportError, TranscriptError."""
        changed_ms = self._store.changed_ms(session)
        if changed_ms is None:
            self._owed.give_up(one.owed, now_ms)
            return "done"
        if not one.owed and self._is_compared(session, changed_ms, now_ms):
            return "done"
        is_over = is_settled and is_quiet(changed_ms, now_ms)
        if one.read_ms == changed_ms and not is_over:
            return "later"
        # What is `off` is noted without content whenever it was written.
        is_all = one.owed or capturing.policy.mode == "off"
        since_ms = None if is_all else self._since_ms(one.folder) or 0
        request = ReadRequest(one.folder, capturing, now_ms, changed_ms, since_ms, whole=True, is_over=is_over)
        look = self._reader.look(session, request)
        if look is None:
            self._owed.give_up(one.owed, now_ms)
            return "done"
        if look.has_more or look.is_waiting:
            one.read_ms = None if look.has_more else changed_ms
            return "more" if look.has_more else "later"
        self._reader.let_go()
        self._owed.settle(one.owed)
        return "done"

    def _fail(self, error: ExportError | TranscriptError, owed: Collection[str]) -> None:
        self._owed.wait(owed, reason_of(error))
        self._tell(f"what OpenCode's store holds could not be compared: {error}")

"""Notices: decides when each session that the plugin told of is looked at next. Pure: the clock comes in.

    notice ─▶ due ─ looked at ─▶ read: settled
                            ├──▶ unfinished, or not there yet: again after 50 and 250 ms, then with the next notice
                            └──▶ cannot be read: again after a second, then every AGAIN_S

The sessions that were noticed are those that this OpenCode has open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from app.capture.messages import Line

CARE_S = 2.0
"""How often the hook looks whether its worker lives."""
BUG = "internal error"
"""What a bug of ours is called where it cost a line or a look at a session."""
SOON_S = (0.05, 0.2)
"""The pauses before the second and third look: a notice may come before what it tells of is committed."""
FAILED_S = 1.0
"""Before the second look at what cannot be read: a file may have been half written."""
AGAIN_S = 30.0
OWNED_MAX = 4_096
"""The newest are kept. A session that falls out is one that nobody is seen to own."""
T = TypeVar("T")


@dataclass(slots=True)
class Noticed:
    """A session that this OpenCode has open, as of its newest notice."""

    line: Line
    mark: int | None
    """What settles the notice in the ledger; None: it is settled."""
    root: str | None = None
    """The session inside which it is shown, as far as that is known."""
    due_s: float | None = 0
    """None: not before the next notice."""
    looks: int = 0
    """Without success, since it was noticed."""
    is_anywhere: bool = False
    """What is new may be in any of its turns."""
    number: int | None = None
    """Of the oldest line that nobody has looked for yet."""

    @property
    def session(self) -> str:
        return self.line.session


class Notices:
    """The notices of one hook."""

    def __init__(self) -> None:
        self._sessions: dict[str, Noticed] = {}
        """In the order of their newest notices."""
        self.has_ended = False
        """OpenCode is gone: no notice will come any more."""

    def __iter__(self) -> Iterator[Noticed]:
        return iter(list(self._sessions.values()))

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def __len__(self) -> int:
        """How many are about to be looked at."""
        return sum(one.number is not None or (one.due_s is not None and one.looks < len(SOON_S)) for one in self)

    def add(self, line: Line, mark: int) -> Noticed:
        before = self._sessions.pop(line.session, None)
        added = Noticed(line, mark, number=line.number, is_anywhere=line.why in {"late", "reverted"})
        if before is not None:
            added.root = before.root
            added.is_anywhere |= before.is_anywhere
            added.number = line.number if before.number is None else before.number
        self._sessions[line.session] = added
        bound(self._sessions)
        return added

    def drop(self, session: str) -> None:
        self._sessions.pop(session, None)

    def inherit(self, root: str, owed: Mapping[str, int]) -> None:
        """Take over what a hook that is gone was told of inside of a session that is open here: marks, by session."""
        for known in self.inside(root)[:1]:
            for session, mark in owed.items():
                if session not in self:
                    line = replace(known.line, session=session, why="idle", number=None)
                    self.add(line, mark).root = root

    def look_at_all(self, now_s: float) -> None:
        """Once more, and no look comes after it."""
        for one in self:
            one.due_s, one.looks = now_s, len(SOON_S)

    def owned(self) -> list[str]:
        """The sessions that this OpenCode has open, with those inside which they are shown."""
        found = {one.session for one in self} | {one.root for one in self if one.root is not None}
        return sorted(found)

    def due_s(self) -> float | None:
        """When the next one is to be looked at."""
        return min((one.due_s for one in self if one.due_s is not None), default=None)

    def next(self, now_s: float) -> Noticed | None:
        """The one to be looked at now."""
        due = [one for one in self if one.due_s is not None and one.due_s <= now_s]
        return min(due, key=lambda one: one.due_s or 0, default=None)

    def inside(self, root: str | None) -> list[Noticed]:
        """The notices shown inside of a session, itself included; of none where that is not known."""
        return [one for one in self if root is not None and one.root == root]

    def due_inside(self, one: Noticed, now_s: float) -> list[Noticed]:
        """What is to be looked at now inside the same session, this one first."""
        others = [each for each in self.inside(one.root) if each is not one]
        return [one, *(each for each in others if each.due_s is not None and each.due_s <= now_s)]

    def is_at_work(self, root: str | None) -> bool:
        """Whether the session itself said that it is, so that it will say when it has done."""
        one = self._sessions.get(root or "")
        return one is not None and one.line.why == "busy"

    def acknowledged(self) -> int | None:
        """Every line before this one was looked for; None where all were."""
        return min((one.number for one in self if one.number is not None), default=None)


def bound(kept: dict[str, T]) -> None:
    """The newest stay."""
    while len(kept) > OWNED_MAX:
        del kept[next(iter(kept))]


def look_again(one: Noticed, now_s: float) -> None:
    """Look again soon, as it is unfinished or not there yet; of a busy session with the next notice, bound to come."""
    one.number, one.due_s = None, None
    if one.line.why != "busy" and one.looks < len(SOON_S):
        one.due_s = now_s + SOON_S[one.looks]
    one.looks += 1


def postpone(one: Noticed, now_s: float, pause_s: float) -> None:
    """Look again later: it cannot be read."""
    one.number, one.due_s = None, now_s + pause_s
    one.looks += 1


def leave(one: Noticed) -> None:
    """Look no more by itself: it stays owed, and another notice is bound to come."""
    one.number = one.due_s = None


def settle(one: Noticed) -> None:
    one.number = one.due_s = one.mark = None
    one.is_anywhere = False

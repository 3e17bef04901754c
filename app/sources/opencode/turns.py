"""Puts sessions, their families and their turns together from the rows of a store."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from app.sources.opencode.access import StoreError
from app.sources.opencode.rows import Head, Rows, subagents
from app.transcript.fields import Place
from app.transcript.id_times import is_copy
from app.transcript.model import Excerpt, Json


@dataclass(frozen=True, slots=True)
class TurnOutline:
    """A turn as far as its rows tell without being read. Whoever finds it as before need not read the turn again."""

    turn: str
    rows: int
    """Its messages and parts, those of its subagents, the subagents themselves, and the mark of an undo."""
    updated_ms: int
    """The latest time at which one of these was written; 0 where none says."""


@dataclass(frozen=True, slots=True)
class Outline:
    session: str
    updated_ms: int
    """When the session's own row was written: its title, its folder, what is undone of it."""
    turns: tuple[TurnOutline, ...]
    """In the order of their first messages."""


def roots(rows: Rows, directory: str | None, among: Collection[str] | None) -> list[Head]:
    """The sessions that no call of a parent's turn names.

    Of a parent that cannot be read now nobody knows which these are: none of those below it is one.
    """
    heads = [head for head in rows.heads(directory) if among is None or head.id in among]
    called: dict[str, set[str]] = {}
    for parent in {head.parent for head in heads if head.parent is not None}:
        with suppress(StoreError):
            called[parent] = {*_called(rows, parent)}
    return [head for head in heads if head.parent is None or head.id not in called.get(head.parent, {head.id})]


def root_of(rows: Rows, session: str) -> str | None:
    seen: list[str] = []
    above: str | None = session
    while above is not None and above not in seen:
        head = rows.head(above)
        if head is None or (seen and seen[-1] not in _called(rows, above)):
            break
        seen.append(above)
        above = head.parent
    return seen[-1] if seen else None


def below(rows: Rows, session: str) -> list[str]:
    """All that have it above them, at any distance."""
    found: dict[str, None] = {session: None}
    ahead = [session]
    while ahead:
        children = [child for child in rows.below(ahead.pop()) if child not in found]
        found |= dict.fromkeys(children)
        ahead += children
    return [*found][1:]


def family_weight(rows: Rows, session: str) -> tuple[int, int]:
    """How many rows it has with all below it, and when one of them was written last."""
    found = rows.weights([session, *below(rows, session)]).values()
    return sum(count for count, _ in found), max(updated_ms for _, updated_ms in found)


def changes(rows: Rows, directory: str | None) -> dict[str, int]:
    """When each session was written last, with all below it: of all, or of those of a directory."""
    wanted, heads = rows.heads(directory), rows.heads()
    children: dict[str, list[str]] = {}
    for head in heads:
        if head.parent is not None:
            children.setdefault(head.parent, []).append(head.id)
    families = {head.id: [head.id] for head in wanted}
    for names in families.values():
        for name in names:  # which grows meanwhile
            names += [child for child in children.get(name, ()) if child not in names]
    written = rows.weights({name for names in families.values() for name in names})
    return {session: max(written[name][1] for name in names) for session, names in families.items()}


def outline(rows: Rows, session: str, since: str | None, also: Collection[str]) -> Outline | None:
    head = rows.head(session)
    if head is None:
        return None
    listed = rows.listed(session)
    order = list(dict.fromkeys(listed.values()))
    begin = order.index(since) if since in order else 0
    wanted = {*order[begin:], *(name for name in order[:begin] if name in also)}
    told = dict.fromkeys((name for name in order if name in wanted), (0, 0))

    def add(turn: str, count: int, updated_ms: int) -> None:
        told[turn] = told[turn][0] + count, max(told[turn][1], updated_ms)

    messages = [name for name, turn in listed.items() if turn in wanted]
    for message, count, updated_ms in rows.weighed(session, messages):
        add(listed[message], count, updated_ms)
    children = rows.below(session)
    callers = _callers(rows, session, listed) if children else {}
    for child in children:
        turn = listed.get(callers.get(child, ""))
        if turn in told:
            add(turn, *family_weight(rows, child))
    for name in _undone(rows.info(session), listed):
        if name in told:
            add(name, 1, 0)
    turns = tuple(TurnOutline(name, *one) for name, one in told.items())
    return Outline(session, head.updated_ms, turns)


def entry(rows: Rows, session: str, names: list[str] | None = None) -> dict[str, Json]:
    """The session as `opencode export` prints it, with all of its messages or only these."""
    names = list(rows.listed(session)) if names is None else names
    return {"info": rows.info(session), "messages": rows.messages(session, names)}


def family(rows: Rows, session: str) -> dict[str, dict[str, Json]]:
    """The session's entry and those of all that calls name, in it and in these."""
    found: dict[str, dict[str, Json]] = {}
    ahead = [session]
    while ahead:
        name = ahead.pop()
        if name not in found and rows.head(name) is not None:
            found[name] = entry(rows, name)
            ahead += subagents(found[name])
    return found


def excerpt(rows: Rows, session: str, turns: Collection[str]) -> tuple[list[Json], Excerpt | None] | None:
    """Entries of the session with only these turns, and of the subagents that belong to them.

    All of it, and no Excerpt, where it or a message does not say when it was created: what stands around tells that.
    """
    head = rows.head(session)
    if head is None:
        return None
    listed = rows.listed(session)
    created_ms = Place("", rows.info(session)).object("time").moment("created")
    if created_ms is None or not listed.keys().isdisjoint(rows.undated(session)):
        return [*family(rows, session).values()], None
    names = [name for name, turn in listed.items() if turn in turns]
    taken = set(names)
    own = entry(rows, session, names)
    entries: dict[str, Json] = {session: own}
    called = {*subagents(own)} - {session}
    callers = _callers(rows, session, listed) if called else {}
    for name in called:
        if callers.get(name) in taken:
            entries |= {child: found for child, found in family(rows, name).items() if child not in entries}
    positions = tuple(position for position, name in enumerate(listed) if name in taken)
    return [*entries.values()], Excerpt(positions, _undone_from(rows, session), _origin(rows, head, listed))


def first_turn(rows: Rows, session: str) -> str | None:
    """Turn which began in it first: what is older than a session is mostly a fork's copy."""
    head, listed = rows.head(session), rows.listed(session)
    if head is None or not listed:
        return None
    own = (name for name, created_ms in rows.created_ms(session).items() if created_ms >= head.created_ms)
    return listed[next(own, next(iter(listed)))]


def _called(rows: Rows, session: str) -> list[str]:
    return [name for names in rows.calls(session, rows.listed(session)).values() for name in names]


def _callers(rows: Rows, session: str, listed: dict[str, str]) -> dict[str, str]:
    """For each session that a call names the first message that does: it belongs there."""
    first: dict[str, str] = {}
    unreadable = rows.unreadable(session)
    for message, names in rows.calls(session, listed).items():
        for name in names if message not in unreadable else ():
            first.setdefault(name, message)
    return first


def _undone(info: dict[str, Json], listed: dict[str, str]) -> set[str]:
    """The turns behind the message that `/undo` went back to, with that one's."""
    name, names = _reverted_to(info), list(listed)
    return {listed[one] for one in names[names.index(name) :]} if name in listed else set()


def _undone_from(rows: Rows, session: str) -> tuple[int, str] | None:
    name = _reverted_to(rows.info(session))
    created_ms = rows.created_ms(session).get(name) if name else None
    return None if created_ms is None else (created_ms, name)


def _reverted_to(info: dict[str, Json]) -> str:
    revert = info.get("revert")
    name = revert.get("messageID") if isinstance(revert, dict) else None
    return name if isinstance(name, str) else ""


def _origin(rows: Rows, head: Head, listed: dict[str, str]) -> str | None:
    """Where the first answer that can be read, and that no fork has copied, was given."""
    left_out = {listed[name] for name in rows.unreadable(head.id) if name in listed}
    for name, created_ms, cwd in rows.answers(head.id):
        if listed.get(name) not in left_out and is_copy(name, created_ms, head.created_ms) is not True:
            return cwd
    return None

"""Which turns a session in OpenCode's SQLite store has, and which of its rows each of them is made of.

A notice asks for little: of a long session all ids are listed, from an index, and what was learned of a message before
is remembered as long as it cannot change: the turn it belongs to, and, once it is completed, the subagents that its
tool calls name.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from app.shape import IDENTITY_CHARACTERS_MAX, TAKEN

SESSIONS_MAX = 64
"""So many are remembered, those that were asked for last."""
IS_TIME = "time_updated between 0 and 253402300799999"
"""Up to the year 9999. A row with something else there has no say in when a session changed."""
# A row that is not JSON costs its own session, where it is read, and no question about others.
PARENT = "iif(json_valid(m.data), json_extract(m.data, '$.parentID'), null)"
CALLED = "iif(json_valid(p.data), json_extract(p.data, '$.state.metadata.sessionId'), null)"
"""What a tool call names as its subagent."""
TYPE = "iif(json_valid(p.data), json_extract(p.data, '$.type'), null)"
_ROLE = "iif(json_valid(m.data), json_extract(m.data, '$.role'), null)"
_COMPLETED = "iif(json_valid(m.data), json_extract(m.data, '$.time.completed'), null)"


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
    directory: str
    updated_ms: int
    """When the session's own row was written: its title, where it lies, what is undone of it."""
    turns: tuple[TurnOutline, ...]
    """In the order of their first messages."""


@dataclass(slots=True)
class _Remembered:
    turn_of: dict[str, str] = field(default_factory=dict)
    """By message."""
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The sessions that a message's tool calls name, in order; of messages that are completed."""
    unreadable: set[str] = field(default_factory=set)
    """Messages that nobody has said."""


class Turns:
    """What is remembered of sessions from one question to the next."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Remembered] = {}

    def listed(self, db: sqlite3.Connection, session: str) -> dict[str, str]:
        """Each message of the session, in order, with the turn that it belongs to."""
        remembered = self._of(session)
        known = remembered.turn_of
        names = [
            row["id"]
            for row in db.execute("select id from message where session_id = ? order by time_created, id", (session,))
        ]
        rows = db.execute(
            f"select m.id, {_ROLE} as role, {PARENT} as parent from json_each(?) w join message m on m.id = w.value",
            (json.dumps([name for name in names if name not in known]),),
        )
        for row in rows:
            is_answer = row["role"] != "user" and _is_id(row["parent"])
            known[row["id"]] = row["parent"] if is_answer else row["id"]
            if row["role"] not in {"user", "assistant"}:
                remembered.unreadable.add(row["id"])
        return {name: known[name] for name in names}

    def unreadable(self, session: str, listed: dict[str, str]) -> set[str]:
        """The turns that hold a message which is neither a question nor an answer."""
        return {listed[name] for name in self._of(session).unreadable if name in listed}

    def calls(self, db: sqlite3.Connection, session: str, messages: Collection[str]) -> dict[str, tuple[str, ...]]:
        """For each of these messages of the session the sessions that its tool calls name, in order."""
        known = self._of(session).calls
        unread = [name for name in messages if name not in known]
        named: dict[str, list[str]] = {name: [] for name in unread}
        wanted = json.dumps(unread)
        rows = db.execute(
            f"select p.message_id, {CALLED} as name from json_each(?) w join part p on p.message_id = w.value"
            # Most parts are long and name nobody: not every one is taken apart.
            f" where instr(p.data, '\"sessionId\"') and {TYPE} = 'tool' order by w.key, p.id",
            (wanted,),
        )
        for row in rows:
            if isinstance(row["name"], str):
                named[row["message_id"]].append(row["name"])
        settled = db.execute(
            "select m.id from json_each(?) w join message m on m.id = w.value"
            f" where {_ROLE} = 'user' or {_COMPLETED} is not null",
            (wanted,),
        ).fetchall()
        found = {name: known[name] if name in known else tuple(named[name]) for name in messages}
        known.update((row["id"], found[row["id"]]) for row in settled)
        return found

    def callers(self, db: sqlite3.Connection, session: str, listed: Collection[str]) -> dict[str, str]:
        """For each session that a tool call names the first message that does: it belongs there.

        `listed` are all messages of the session, in order.
        """
        first: dict[str, str] = {}
        unreadable = self._of(session).unreadable
        for message, names in self.calls(db, session, listed).items():
            for name in names if message not in unreadable else ():
                first.setdefault(name, message)
        return first

    def outline(self, db: sqlite3.Connection, session: str, since: str | None, also: Collection[str]) -> Outline | None:
        row = db.execute("select * from session where id = ?", (session,)).fetchone()
        if row is None:
            return None
        listed = self.listed(db, session)
        order = list(dict.fromkeys(listed.values()))
        begin = order.index(since) if since in order else 0
        wanted = {*order[begin:], *(name for name in order[:begin] if name in also)}
        told = dict.fromkeys((name for name in order if name in wanted), (0, 0))

        def add(turn: str, rows: int, updated_ms: int) -> None:
            told[turn] = told[turn][0] + rows, max(told[turn][1], updated_ms)

        messages = [name for name, turn in listed.items() if turn in wanted]
        for message, rows, updated_ms in _weighed(db, session, messages, is_whole=len(messages) == len(listed)):
            add(listed[message], rows, updated_ms)
        for child, message in self._children(db, session, listed, messages).items():
            add(listed[message], *_family_weighed(db, child))
        for name in _undone(row, listed):
            if name in told:
                add(name, 1, 0)
        turns = tuple(TurnOutline(name, *one) for name, one in told.items())
        return Outline(session, str(row["directory"] or ""), _ms(row["time_updated"]), turns)

    def _children(
        self, db: sqlite3.Connection, session: str, listed: dict[str, str], messages: Collection[str]
    ) -> dict[str, str]:
        """Subagents with the first message that names each; those whose message is among these."""
        rows = db.execute("select id from session where parent_id = ?", (session,)).fetchall()
        if not rows:
            return {}
        first, wanted = self.callers(db, session, listed), set(messages)
        return {row["id"]: first[row["id"]] for row in rows if first.get(row["id"]) in wanted}

    def _of(self, session: str) -> _Remembered:
        found = self._sessions.pop(session, None) or _Remembered()
        self._sessions[session] = found
        while len(self._sessions) > SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        return found


def _weighed(
    db: sqlite3.Connection, session: str, messages: list[str], *, is_whole: bool
) -> Iterable[tuple[str, int, int]]:
    """For each of these messages how many rows it has, itself included, and when one of them was written last."""
    told = f"count(*) as rows, max(iif({IS_TIME}, time_updated, 0)) as updated_ms"
    # Of a whole session the rows are read as they lie, of a few messages from the index.
    which = "session_id = :session" if is_whole else "{0} in (select value from json_each(:names))"
    values = {"session": session, "names": json.dumps(messages)}
    wanted = set(messages)
    for table, message in (("message", "id"), ("part", "message_id")):
        for row in db.execute(
            f"select {message} as message, {told} from {table} where {which.format(message)} group by {message}", values
        ):
            if row["message"] in wanted:
                yield row["message"], row["rows"], int(row["updated_ms"])


def _family_weighed(db: sqlite3.Connection, session: str) -> tuple[int, int]:
    """The same of a subagent, its messages and all below it."""
    row = db.execute(
        "with recursive family(id) as (values (?) union select s.id from session s join family f on s.parent_id = f.id)"
        " select sum(rows) as rows, max(updated_ms) as updated_ms from ("
        + " union all ".join(
            f"select count(*) as rows, max(iif({IS_TIME}, time_updated, 0)) as updated_ms from {table}"
            f" where {name} in (select id from family)"
            for table, name in (("session", "id"), ("message", "session_id"), ("part", "session_id"))
        )
        + ")",
        (session,),
    ).fetchone()
    return row["rows"], int(row["updated_ms"] or 0)


def _undone(row: sqlite3.Row, listed: dict[str, str]) -> set[str]:
    """The turns behind the message that `/undo` went back to, with that one's."""
    try:
        told = json.loads(row["revert"]) if "revert" in row.keys() and row["revert"] else None  # noqa: SIM118 - no mapping
    except ValueError:
        return set()
    name = told.get("messageID") if isinstance(told, dict) else None
    names = list(listed)
    return {listed[one] for one in names[names.index(name) :]} if name in listed else set()


def _is_id(value: object) -> bool:
    """As `parse` takes a parent's id for one."""
    is_name = isinstance(value, str) and 0 < len(value) <= IDENTITY_CHARACTERS_MAX
    return is_name and "/" not in str(value) and value not in TAKEN


def _ms(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0

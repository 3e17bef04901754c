"""Reads the tables `session`, `message` and `part` of OpenCode 1.2 to 1.18.

A row's ids and its `data` together are one `info` or one part of what `opencode export` prints: messages in the order
of creation time and id, parts in that of their ids (OpenCode 1.18.33). A notice asks for little: of a long session all
ids are listed, from an index, and what was learned of a message before is remembered as long as it cannot change.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from app.sources.opencode.rows import Head, Memory, Usage, is_settled, subagent
from app.sources.opencode.usage import model_name, own_of
from app.transcript.model import Json

IS_TIME = "time_updated between 0 and 253402300799999"
"""Up to the year 9999. A row with something else there has no say in when a session changed."""
NEEDED = {
    "session": {"id", "parent_id", "directory", "title", "version", "time_created", "time_updated", "time_archived"},
    "message": {"id", "session_id", "time_created", "time_updated", "data"},
    "part": {"id", "message_id", "session_id", "time_updated", "data"},
}
# SQLite holds any value in any column: here an id is a text, and a time is an integer.
ID = "coalesce(cast(id as text), '')"
IS_NAMED = "typeof(id) = 'text'"
HEAD = (
    f"select {ID}, (select cast(p.id as text) from {{0}} p where p.id = s.parent_id), cast(directory as text),"
    " cast(time_created as integer), cast(time_updated as integer), cast(title as text) from {0} s"
)
WRITTEN = f"count(*) as rows, coalesce(max(iif({IS_TIME}, cast(time_updated as integer), 0)), 0) as updated_ms"
_HEAD = HEAD.format("session")
# One reading of each message: SQLite keeps the text that it took apart last. What is no JSON says nothing.
USAGE = f"""
with told as (
    select m.id, cast(m.session_id as text) as session, s.time_created as session_ms, m.time_created as created_ms,
        iif(json_valid(m.data), m.data, '{{}}') as data
    -- In this order: of each session its calls since then, from the index of its messages by time. (The plus: else
    -- SQLite takes the 0 of what is a time for the earliest, and reads all.)
    from session s cross join message m on m.session_id = s.id
    where (:among is null or s.id in (select value from json_each(:among))) and m.time_created >= :since
        and +m.{IS_TIME.replace("updated", "created")} and m.data glob '*"assistant"*'
), calls as (
    select session, session_ms, created_ms, coalesce(data ->> '$.parentID', id) as turn,
        date(created_ms / 1000, 'unixepoch', 'localtime') as day, data ->> '$.providerID' as provider,
        data ->> '$.modelID' as model, coalesce(data ->> '$.agent', data ->> '$.mode', '') as agent,
        data ->> '$.error' is not null as failed, (
            select count(*) from part p where p.message_id = told.id and p.data glob '*"error"*'
            and iif(json_valid(p.data), p.data, '{{}}') ->> '$.type' = 'tool'
            and iif(json_valid(p.data), p.data, '{{}}') ->> '$.state.status' = 'error'
        ) as failed_tools, data ->> '$.finish' is not null as finished,
        max(0, coalesce(data ->> '$.tokens.input', 0)) as input,
        max(0, coalesce(data ->> '$.tokens.cache.read', 0)) as cache_read,
        max(0, coalesce(data ->> '$.tokens.cache.write', 0)) as cache_write,
        max(0, coalesce(data ->> '$.tokens.output', 0)) + max(0, coalesce(data ->> '$.tokens.reasoning', 0)) as output,
        coalesce(data ->> '$.cost', 0) as cost, iif(created_ms < session_ms, cast(id as text), '') as older
    from told where data ->> '$.role' = 'assistant'
)
select session, cast(turn as text), day, cast(provider as text), cast(model as text), cast(agent as text), count(*),
    total(failed), total(failed_tools), total(input), total(cache_read), total(cache_write), total(output), total(cost),
    created_ms, session_ms, older
from calls where failed or finished or input or output or cache_read or cache_write
group by session, turn, day, provider, model, agent, older
"""


class TableRows:
    """`Rows` of the tables of OpenCode 1.2 to 1.18."""

    def __init__(self, db: sqlite3.Connection, memory: Memory) -> None:
        self._db = db
        self._memory = memory
        self._told: dict[str, dict[str, Json]] = {}
        """What messages say that were read to learn from them."""

    def heads(self, directory: str | None = None, among: Collection[str] | None = None) -> list[Head]:
        # Of these alone the others are not read.
        which = "" if among is None else "and id in (select value from json_each(:among))"
        rows = self._db.execute(
            f"{_HEAD} where {IS_NAMED} and (:directory is null or directory = :directory) {which}"
            " order by time_created, id",
            {"directory": directory, "among": json.dumps([*(among or ())])},
        )
        return [head(row) for row in rows]

    def head(self, session: str) -> Head | None:
        row = self._db.execute(f"{_HEAD} where id = ?", (session,)).fetchone()
        return None if row is None else head(row)

    def below(self, session: str) -> list[str]:
        rows = self._db.execute(f"select {ID} as name from session where parent_id = ? order by id", (session,))
        return [row["name"] for row in rows]

    def info(self, session: str) -> dict[str, Json]:
        row = self._db.execute("select * from session where id = ?", (session,)).fetchone()
        return info(row, row["parent_id"])

    def listed(self, session: str) -> dict[str, str]:
        known = self._memory.of(session)
        added = self._since(session, known.newest) if known.newest is not None else []
        # Where other messages came or went than at the end, all are listed anew.
        if not added or added[0][:2] != known.newest or len(known.listed) + len(added) - 1 != self._count(session):
            known.listed, added = {}, self._since(session)
        known.newest = added[-1][:2] if added else None
        found = {name: created_ms for *_, name, created_ms in added if name not in known.listed}
        for row in self._messages([name for name in found if name not in known.turn_of]):
            self._told[row["id"]] = fields(row["data"])
            known.learn(row["id"], self._told[row["id"]], found.get(row["id"], 0))
        for name, created_ms in found.items():
            if name not in known.turn_of:
                # It cannot be asked for: no text, or not in UTF-8.
                known.learn(name, {"time": {"created": created_ms}}, created_ms)
        if found:
            names = sorted([*known.listed, *found], key=lambda name: (known.created_ms[name], name))
            known.listed = {name: known.turn_of[name] for name in names}
        return known.listed

    def unreadable(self, session: str) -> Collection[str]:
        return self._memory.of(session).unreadable

    def undated(self, session: str) -> Collection[str]:
        return self._memory.of(session).undated

    def messages(self, session: str, names: list[str]) -> list[Json]:
        found: list[Json] = []
        known = self._memory.of(session)
        told = {name: self._told[name] for name in names if name in self._told}
        told |= {row["id"]: fields(row["data"]) for row in self._messages([one for one in names if one not in told])}
        for name in names:
            ids = {"messageID": name, "sessionID": session}
            rows = self._db.execute(f"select {ID} as name, data from part where message_id = ? order by id", (name,))
            parts: list[Json] = [{**fields(row["data"]), "id": row["name"], **ids} for row in rows]
            # What says nothing stands where its row does.
            own = told.get(name) or {"time": {"created": known.created_ms.get(name)}}
            found.append({"info": {**own, "id": name, "sessionID": session}, "parts": parts})
        return found

    def calls(self, session: str, messages: Collection[str]) -> dict[str, tuple[str, ...]]:
        known = self._memory.of(session).calls
        unread = [name for name in messages if name not in known]
        named: dict[str, list[str]] = {name: [] for name in unread}
        rows = self._db.execute(
            "select p.message_id, p.data from json_each(?) w join part p on p.message_id = w.value"
            # Most parts are long and name nobody: not every one is taken apart.
            " where p.data glob '*\"sessionId\"*' order by w.key, p.id",
            (json.dumps(unread),),
        )
        for row in rows:
            name = subagent(fields(row["data"]))
            if name is not None and row["message_id"] in named:
                named[row["message_id"]].append(name)
        found = {name: known[name] if name in known else tuple(named[name]) for name in messages}
        for row in self._messages(unread):
            if row["id"] in named and is_settled(fields(row["data"])):
                known[row["id"]] = found[row["id"]]
        return found

    def answers(self, session: str) -> Iterable[tuple[str, int, str]]:
        return self._memory.of(session).answers(self.listed(session))

    def created_ms(self, session: str) -> dict[str, int]:
        known = self._memory.of(session).created_ms
        return {name: known[name] for name in self.listed(session)}

    def weighed(self, session: str, messages: list[str]) -> Iterable[tuple[str, int, int]]:
        wanted = set(messages)
        # Of a whole session the rows are read as they lie, of a few messages from the index.
        is_whole = len(wanted) == self._count(session)
        for table, message in (("message", "id"), ("part", "message_id")):
            which = "session_id = ?" if is_whole else f"{message} in (select value from json_each(?))"
            rows = self._db.execute(
                f"select {message} as message, {WRITTEN} from {table} where {which} group by {message}",
                (session if is_whole else json.dumps(messages),),
            )
            yield from ((row["message"], row["rows"], row["updated_ms"]) for row in rows if row["message"] in wanted)

    def weights(self, sessions: Collection[str]) -> dict[str, tuple[int, int]]:
        return weights(self._db, {"session": "id", "message": "session_id", "part": "session_id"}, sessions)

    def usage(self, since_ms: int, among: Collection[str] | None = None) -> Iterable[Usage]:
        wanted = None if among is None else json.dumps([*among])
        found = self._db.execute(USAGE, {"since": since_ms, "among": wanted})
        return own_of((_usage(row), row["created_ms"], row["session_ms"], row["older"]) for row in found)

    def _count(self, session: str) -> int:
        count: int = self._db.execute("select count(*) from message where session_id = ?", (session,)).fetchone()[0]
        return count

    def _since(self, session: str, newest: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """The messages from this one on, or all: (time_created, id) as they are kept, and as they are read."""
        later = "and (time_created, id) >= (?, ?)" if newest else ""
        rows = self._db.execute(
            f"select time_created, id, {ID}, coalesce(cast(time_created as integer), 0)"
            f" from message where session_id = ? {later} order by time_created, id",
            (session, *newest),
        )
        return [tuple(row) for row in rows]

    def _messages(self, names: list[str]) -> sqlite3.Cursor:
        """Those of them that can be asked for, and others: SQLite ends a text in JSON at a NUL."""
        return self._db.execute(
            "select m.id, m.data from json_each(?) w join message m on m.id = w.value",
            (json.dumps(names),),
        )


def weights(db: sqlite3.Connection, tables: Mapping[str, str], sessions: Collection[str]) -> dict[str, tuple[int, int]]:
    """As `Rows` has it, of these tables, each with its column that names the session."""
    names = [*sessions]
    found = [(0, 0)] * len(names)
    for table, name in tables.items():
        rows = db.execute(
            # In this order: each session is looked up by the index.
            f"select w.key as at, {WRITTEN} from json_each(?) w cross join {table} t on t.{name} = w.value"
            " group by w.key",
            (json.dumps(names),),
        )
        for row in rows:
            count, updated_ms = found[row["at"]]
            found[row["at"]] = count + row["rows"], max(updated_ms, row["updated_ms"])
    return dict(zip(names, found, strict=True))


def info(row: sqlite3.Row, parent: str | None) -> dict[str, Json]:
    """A row of either table of sessions."""
    found: dict[str, Json] = {name: told(row[name]) for name in ("id", "title", "directory", "version")}
    times = {name: told(row[f"time_{name}"]) for name in ("created", "updated", "archived")}
    found["time"] = {name: time for name, time in times.items() if time is not None or name != "archived"}
    if parent is not None:
        found["parentID"] = told(parent)
    if "revert" in row.keys() and row["revert"]:  # noqa: SIM118 - a row is no mapping
        found["revert"] = fields(row["revert"])
    return found


def fields(data: object) -> dict[str, Json]:
    """The JSON object in a column; an empty one for anything else, which is unreadable for `parse`."""
    try:
        value = json.loads(data) if isinstance(data, str | bytes) else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def told(value: Any) -> Json:
    """What a column holds."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def head(row: sqlite3.Row) -> Head:
    name, parent, directory, created_ms, updated_ms, title = row
    return Head(name, parent, directory or "", created_ms or 0, updated_ms or 0, title or "")


def _usage(row: sqlite3.Row) -> Usage:
    session, turn, day, provider, model, agent, calls, errors, failed_tools, *numbers = [*row][:14]
    fresh, cache_read, cache_write, output, cost = numbers
    return Usage(
        session=session,
        turn=turn,
        day=day,
        model=model_name(provider, model),
        agent=agent,
        calls=calls,
        errors=int(errors),
        failed_tools=int(failed_tools),
        input_tokens=int(fresh),
        cache_read_tokens=int(cache_read),
        cache_write_tokens=int(cache_write),
        output_tokens=int(output),
        cost_usd=cost,
    )

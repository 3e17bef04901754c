"""OpenCode's own store, read and never written: the SQLite generation of OpenCode 1.18.

One file holds all projects; `session`, `message` and `part` are what `opencode export` prints: a row's ids and its
`data` together are one `info` or one part, messages in the order of creation time and id, parts in that of their ids
(OpenCode 1.18.33). Every question is one short read; `access` says how.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from app.minting import is_copy
from app.opencode.access import Access, NewerError, StoreError, is_newer
from app.opencode.files import File
from app.opencode.folders import data_folder
from app.opencode.turns import CALLED, IS_TIME, PARENT, TYPE, Outline, Turns
from app.parse import Excerpt, parse
from app.transcript import Json, Transcript, TranscriptError

_CWD = (
    "iif(json_valid(m.data) and json_extract(m.data, '$.role') = 'assistant', json_extract(m.data, '$.path.cwd'), null)"
)


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A root session: one that no call of a parent's turn names.

    A subagent is one, too, whose parent or whose call is gone, or that a plugin has started without a call.
    """

    id: str
    directory: str
    created_ms: int
    updated_ms: int
    """As OpenCode keeps it. What changed inside of its turns is in `Store.changed_ms`."""


def store_file(environ: Mapping[str, str]) -> Path:
    """Where OpenCode keeps it, unless told otherwise by OPENCODE_DB."""
    named = environ.get("OPENCODE_DB")
    if named and Path(named).is_absolute():
        return Path(named)
    return data_folder(environ) / (named or "opencode.db")


class Store:
    """The store in one file. All methods raise StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._access = Access(path)
        self._turns = Turns()

    def kept_open(self) -> AbstractContextManager[None]:
        """As `Access` has it."""
        return self._access.kept_open()

    def is_newer(self) -> bool:
        """Whether it holds sessions of OpenCode 2, beside those of 1.x or alone."""
        try:
            return self._access.ask(is_newer)
        except NewerError:
            return True

    def roots(self, directory: str | None = None, among: Collection[str] | None = None) -> list[StoredSession]:
        """Those of all projects, or those that were started in `directory`; the oldest first.

        Only those `among` others: to tell a subagent, all that was said in its parent is read.
        """

        def listed(db: sqlite3.Connection) -> list[sqlite3.Row]:
            rows = db.execute(
                "select id, directory, cast(time_created as integer), cast(time_updated as integer),"
                " (select p.id from session p where p.id = s.parent_id) as parent from session s"
                " where ? is null or directory = ? order by time_created, id",
                (directory, directory),
            ).fetchall()
            rows = [row for row in rows if among is None or row["id"] in among]
            called = _called(db, {row["parent"] for row in rows} - {None})
            return [row for row in rows if (row["parent"], row["id"]) not in called]

        return [StoredSession(*row[:4]) for row in self._access.ask(listed)]

    def uncalled(self, session: str) -> list[str]:
        """The sessions below this one that no call of a parent's turn names."""
        rows = self._access.ask(
            lambda db: db.execute(
                "with recursive below(id) as (select id from session where parent_id = ?"
                "  union select s.id from session s join below b on s.parent_id = b.id) select id from below",
                (session,),
            ).fetchall()
        )
        return [one.id for one in self.roots(among={row["id"] for row in rows})] if rows else []

    def changed_ms(self, session: str) -> int | None:
        """When anything of the session or of its subagents was written last; None when it is not there."""
        return self._changes("id = ?", session).get(session)

    def changes(self, directory: str) -> dict[str, int]:
        """`changed_ms` of all roots that were started in a directory."""
        return self._changes("directory = ?", directory)

    def _changes(self, condition: str, argument: str) -> dict[str, int]:
        rows = self._access.ask(
            lambda db: db.execute(
                f"with recursive family(root, id) as (select id, id from session where {condition}"
                "  union select f.root, s.id from session s join family f on s.parent_id = f.id)"
                f" select f.root, max(max(iif(s.{IS_TIME}, s.time_updated, 0),"
                f"  coalesce((select max(time_updated) from message where session_id = s.id and {IS_TIME}), 0),"
                f"  coalesce((select max(time_updated) from part where session_id = s.id and {IS_TIME}), 0)))"
                " as changed_ms from family f join session s on s.id = f.id group by f.root",
                (argument,),
            ).fetchall()
        )
        return {row["root"]: int(row["changed_ms"]) for row in rows}

    def files(self, session: str) -> list[File]:
        """A session and, after it, the subagents that its task calls name, each as `opencode export` would put it.

        In memory only. Raises StoreError when there is no such session.
        """
        try:
            found = self._access.ask(lambda db: _family(db, session))
        except TranscriptError as error:
            raise StoreError(str(error)) from None
        if not found:
            raise StoreError(f"OpenCode's store {self.path} holds no session {session}")
        return [File(name, json.dumps(entry).encode()) for name, entry in found.items()]

    def root_of(self, session: str) -> str | None:
        """The session inside which it is shown: up to its parent as long as a call of that one's turns names it.

        Itself where nobody names it; None when it is not there.
        """
        return self._access.ask(lambda db: _root_of(db, self._turns, session))

    def outline(self, root: str, *, since: str | None = None, also: Collection[str] = ()) -> Outline | None:
        """Its turns from this one on (all, where that is not there), and these others; None when it is not there.

        Subagents count with the turn whose call has started them. No text is read for it.
        """
        return self._access.ask(lambda db: self._turns.outline(db, root, since, also))

    def transcript(self, session: str, turns: Collection[str] | None = None) -> Transcript | None:
        """The session with its subagents, or only these of its turns, as the whole transcript has them.

        None when it is not there. Raises TranscriptError.
        """
        if turns is not None:
            return self._excerpt(session, turns)
        entries: list[Json] = [*self._access.ask(lambda db: _family(db, session)).values()]
        return parse({"root": session, "sessions": entries}) if entries else None

    def _excerpt(self, session: str, turns: Collection[str]) -> Transcript | None:
        found = self._access.ask(lambda db: _excerpt(db, self._turns, session, turns))
        if found is None:
            return None
        entries, excerpt = found
        return parse({"root": session, "sessions": entries}, excerpt)

    def turn(self, session: str, turn: str | None) -> Transcript | None:
        """The session with this one of its turns (None: its first), as the whole transcript has it.

        None when it is not there. Raises TranscriptError.
        """
        name = self._access.ask(lambda db: _first_turn(db, session)) if turn is None else turn
        found = self.transcript(session, {name}) if name is not None else None
        return found if found is not None and found.turns else None

    def holds(self, session: str, turn: str | None) -> bool:
        """Whether the turn's user message, or an answer to it, is there (None: any turn). Looks into no text."""
        if turn is None:
            return self._access.ask(lambda db: _first_turn(db, session)) is not None
        return self._access.ask(lambda db: turn in self._turns.listed(db, session).values())


def _family(db: sqlite3.Connection, session: str) -> dict[str, dict[str, Json]]:
    found: dict[str, dict[str, Json]] = {}
    ahead = [session]
    while ahead:
        name = ahead.pop()
        entry = None if name in found else _entry(db, name)
        if entry is not None:
            found[name] = entry
            ahead += _subagents(db, name)
    return found


def _root_of(db: sqlite3.Connection, turns: Turns, session: str) -> str | None:
    seen: list[str] = []
    above: str | None = session
    while above is not None and above not in seen:
        row = db.execute("select parent_id from session where id = ?", (above,)).fetchone()
        if row is None or (seen and not _is_called(db, turns, above, seen[-1])):
            break
        seen.append(above)
        above = row["parent_id"]
    return seen[-1] if seen else None


def _is_called(db: sqlite3.Connection, turns: Turns, parent: str, session: str) -> bool:
    messages = turns.listed(db, parent)
    return any(session in names for names in turns.calls(db, parent, messages).values())


def _excerpt(
    db: sqlite3.Connection, turns: Turns, session: str, wanted: Collection[str]
) -> tuple[list[Json], Excerpt] | None:
    listed = turns.listed(db, session)
    names = [name for name, turn in listed.items() if turn in wanted]
    entry = _entry(db, session, names)
    if entry is None:
        return None
    entries: dict[str, Json] = {session: entry}
    taken = set(names)
    called = {name for one in turns.calls(db, session, names).values() for name in one} - {session}
    if called:
        first = turns.callers(db, session, listed)
        for name in called:
            if first.get(name) in taken:
                entries |= {child: found for child, found in _family(db, name).items() if child not in entries}
    positions = tuple(position for position, name in enumerate(listed) if name in taken)
    return [*entries.values()], Excerpt(
        positions, _undone_from(db, entry), _origin(db, session, listed, turns.unreadable(session, listed))
    )


def _undone_from(db: sqlite3.Connection, entry: dict[str, Json]) -> tuple[int, str] | None:
    info = entry["info"]
    revert = info.get("revert") if isinstance(info, dict) else None
    name = revert.get("messageID") if isinstance(revert, dict) else None
    if not isinstance(name, str) or not isinstance(info, dict):
        return None
    row = db.execute("select time_created from message where id = ? and session_id = ?", (name, info["id"])).fetchone()
    return None if row is None else (row["time_created"], name)


def _origin(db: sqlite3.Connection, session: str, listed: dict[str, str], left_out: Collection[str]) -> str | None:
    """Where the first answer that can be read, and that no fork has copied, was given."""
    rows = db.execute(
        f"select m.id, m.time_created, s.time_created as began, {_CWD} as cwd from message m"
        " join session s on s.id = m.session_id where m.session_id = ? order by m.time_created, m.id",
        (session,),
    )
    for row in rows:
        is_own = is_copy(row["id"], row["time_created"], row["began"]) is not True
        if isinstance(row["cwd"], str) and is_own and listed[row["id"]] not in left_out:
            return row["cwd"]
    return None


def _first_turn(db: sqlite3.Connection, session: str) -> str | None:
    row = db.execute(
        f"select coalesce({PARENT}, m.id) as turn from message m join session s on s.id = m.session_id"
        # Older ones are mostly a fork's copies.
        " where m.session_id = ? order by m.time_created < s.time_created, m.time_created, m.id limit 1",
        (session,),
    ).fetchone()
    return None if row is None else str(row["turn"])


def _entry(db: sqlite3.Connection, session: str, names: list[str] | None = None) -> dict[str, Json] | None:
    """The session with all of its messages, or only these."""
    row = db.execute("select * from session where id = ?", (session,)).fetchone()
    if row is None:
        return None
    info: dict[str, Json] = {
        "id": row["id"],
        "title": row["title"],
        "directory": row["directory"],
        "version": row["version"],
        "time": {"created": row["time_created"], "updated": row["time_updated"]}
        | ({"archived": row["time_archived"]} if row["time_archived"] is not None else {}),
    }
    if row["parent_id"] is not None:
        info["parentID"] = row["parent_id"]
    if "revert" in row.keys() and row["revert"]:  # noqa: SIM118 - a row is no mapping
        info["revert"] = _fields(row["revert"])
    messages: list[Json] = []
    rows = db.execute(
        "select id, data from message where session_id = ? order by time_created, id"
        if names is None
        else "select m.id, m.data from json_each(?) w join message m on m.id = w.value order by w.key",
        (session if names is None else json.dumps(names),),
    ).fetchall()
    for message in rows:
        ids = {"messageID": message["id"], "sessionID": session}
        found = db.execute("select id, data from part where message_id = ? order by id", (message["id"],))
        parts: list[Json] = [{**_fields(part["data"]), "id": part["id"], **ids} for part in found]
        info_of = {**_fields(message["data"]), "id": message["id"], "sessionID": session}
        messages.append({"info": info_of, "parts": parts})
    return {"info": info, "messages": messages}


def _fields(data: object) -> dict[str, Json]:
    """The JSON object in a column; an empty one for anything else, which is unreadable for `parse`."""
    try:
        value = json.loads(data) if isinstance(data, str | bytes) else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _called(db: sqlite3.Connection, parents: Collection[str]) -> set[tuple[str, str]]:
    """(session, subagent) for each subagent that a tool call of one of these sessions names."""
    rows = db.execute(
        f"select distinct p.session_id, {CALLED} as name from part p join message m on m.id = p.message_id"
        # Most parts are long and name nobody: not every one is taken apart.
        " where p.session_id in (select value from json_each(?)) and instr(p.data, '\"sessionId\"')"
        f" and {TYPE} = 'tool' and name is not null",
        (json.dumps(list(parents)),),
    )
    return {(row["session_id"], row["name"]) for row in rows}


def _subagents(db: sqlite3.Connection, session: str) -> list[str]:
    """The sessions that its tool calls name, in order."""
    rows = db.execute(
        f"select {CALLED} as name from message m join part p on p.message_id = m.id where m.session_id = ?"
        f" and instr(p.data, '\"sessionId\"') and {TYPE} = 'tool' order by m.time_created, m.id, p.id",
        (session,),
    )
    return [row["name"] for row in rows if isinstance(row["name"], str)]

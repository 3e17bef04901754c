"""A store as OpenCode 2 is described to keep it: its tables, what it does to them, and its migration of OpenCode 1's.

Only what matters to a reader is here. OpenCode 2 itself was not tried.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tests.sources.opencode.test_store import built

Fields = dict[str, Any]

BEGAN_MS = 1_795_000_000_000
DIRECTORY = "/home/dev/project"
MODEL = {"id": "fake-large", "providerID": "fake"}
TOKENS = {"input": 1000, "output": 34, "reasoning": 6, "cache": {"read": 200, "write": 0}}
_MS = "time_created integer not null, time_updated integer not null"
NEWER = f"""
create table kv (key text primary key, value text not null, {_MS});
create table event_sequence (aggregate_id text primary key, seq integer not null, owner_id text);
create table session_v2 (id text primary key, project_id text not null, parent_id text, fork_session_id text,
    fork_boundary text, slug text not null, directory text not null, title text, version text not null, revert text,
    agent text, model text, cost real default 0 not null, {_MS}, time_archived integer, time_suspended integer,
    time_idle integer, idle_outcome text);
create table session_message (id text primary key, session_id text not null, type text not null, seq integer not null,
    {_MS}, data text not null);
create unique index session_message_session_seq_idx on session_message (session_id, seq);
create index session_v2_parent_idx on session_v2 (parent_id);
"""


class NewerStore:
    """What OpenCode 2 does, a step at a time."""

    def __init__(self, path: Path, *old: Fields) -> None:
        """`old`: what OpenCode 1 left there. None: there was no OpenCode 1."""
        if old:
            built(path, *old)
        self.path = path
        self.now_ms = BEGAN_MS
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self.db.executescript(NEWER)

    def id(self, prefix: str = "msg") -> str:
        self.now_ms += 10
        return f"{prefix}_{self.now_ms % 2**36:09x}001{self.now_ms % 10**14:014}"

    def session(self, name: str, **columns: Any) -> str:
        self.now_ms += 10
        told = {
            "project_id": "project",
            "slug": "slug",
            "directory": DIRECTORY,
            "version": "2.0.32",
            "time_created": self.now_ms,
            "time_updated": self.now_ms,
            **columns,
        }
        self._insert("session_v2", {"id": name, **told})
        return name

    def row(self, session: str, kind: str, **data: Any) -> str:
        name = self.id()
        self.now_ms += 10
        (last,) = self.db.execute(
            "select max(coalesce((select seq from event_sequence where aggregate_id = ?1), -1),"
            " coalesce((select max(seq) from session_message where session_id = ?1), -1))",
            (session,),
        ).fetchone()
        self.db.execute("insert or replace into event_sequence values (?, ?, null)", (session, last + 1))
        told = {"session_id": session, "type": kind, "seq": last + 1}
        times = {"time_created": self.now_ms, "time_updated": self.now_ms}
        said = {"time": {"created": self.now_ms} | data.pop("time", {}), **data}
        self._insert("session_message", {"id": name, **told, **times, "data": json.dumps(said)})
        return name

    def change(self, name: str, **data: Any) -> None:
        self.now_ms += 10
        (held,) = self.db.execute("select data from session_message where id = ?", (name,)).fetchone()
        self.db.execute(
            "update session_message set data = ?, time_updated = ? where id = ?",
            (json.dumps(json.loads(held) | data), self.now_ms, name),
        )

    def user(self, session: str, text: str, **data: Any) -> str:
        self.db.execute("update session_v2 set time_suspended = ? where id = ?", (self.now_ms, session))
        return self.row(session, "user", text=text, files=data.pop("files", []), **data)

    def assistant(self, session: str, *content: Fields, finish: str | None = "stop", **data: Any) -> str:
        """A call that ended well 50 ms later, unless `data` says otherwise."""
        ended = {} if finish is None else {"streamed": self.now_ms + 40, "completed": self.now_ms + 50}
        told = {
            "agent": "build",
            "model": MODEL,
            "content": list(content),
            "cost": 0.5,
            "tokens": TOKENS,
            "time": ended,
        }
        return self.row(session, "assistant", **{**told, **({"finish": finish} if finish else {}), **data})

    def idle(self, session: str, outcome: str = "succeeded") -> str:
        self.db.execute("update session_v2 set time_suspended = null where id = ?", (session,))
        return self.row(session, "idle", outcome=outcome)

    def turn(self, session: str, asked: str, answered: str) -> str:
        """A whole one; its id."""
        name = self.user(session, asked)
        self.assistant(session, text(answered))
        self.idle(session)
        return name

    def revert(self, session: str, message: str) -> None:
        """A staged one, and then what commits it."""
        self.db.execute(
            "delete from session_message where session_id = ?1 and seq >= (select seq from session_message"
            " where id = ?2)",
            (session, message),
        )

    def delete(self, session: str) -> None:
        self.db.execute("delete from session_message where session_id = ?", (session,))
        self.db.execute("delete from session_v2 where id = ?", (session,))

    def migrate(self, *, phase: str = "completed") -> None:
        """Copy what is in the tables of OpenCode 1, and add what the migration adds."""
        self.now_ms += 1_000_000
        for session in self.db.execute("select * from session").fetchall():
            kept = {name: session[name] for name in session.keys() if name != "revert"}  # noqa: SIM118
            self._insert("session_v2", kept)
            messages = self.db.execute(
                "select * from message where session_id = ? order by time_created, id", (session["id"],)
            )
            rows = [row for message in messages.fetchall() for row in self._copied(message)]
            for seq, (name, kind, created_ms, data) in enumerate(rows):
                told = {"id": name, "session_id": session["id"], "type": kind, "seq": seq, "data": json.dumps(data)}
                self._insert("session_message", {**told, "time_created": created_ms, "time_updated": created_ms})
            self._insert("event_sequence", {"aggregate_id": session["id"], "seq": len(rows)})
        told = {"key": "migration.v1-v2", "value": json.dumps({"phase": phase})}
        self._insert("kv", {**told, "time_created": self.now_ms, "time_updated": self.now_ms})

    def _copied(self, message: sqlite3.Row) -> list[tuple[str, str, int, Fields]]:
        info, at_ms = json.loads(message["data"]), message["time_created"]
        held = self.db.execute("select data from part where message_id = ? order by id", (message["id"],))
        parts = [json.loads(row["data"]) for row in held]
        texts = [part for part in parts if part["type"] == "text"]
        time = {"created": at_ms}
        if info["role"] == "user":
            said = {"text": "\n\n".join(part["text"] for part in texts if not part.get("synthetic")), "time": time}
            added = {"text": "\n\n".join(part["text"] for part in texts if part.get("synthetic")), "time": time}
            split = (f"{message['id'][:16]}{'z' * 14}", "synthetic", at_ms, added)
            return [(message["id"], "user", at_ms, said), *([split] if added["text"] else [])]
        content = [text(part["text"]) for part in texts]
        told = {"agent": "build", "model": MODEL, "content": content, "finish": "stop", "time": time}
        return [(message["id"], "assistant", at_ms, told)]

    def export(self, session: str) -> Fields:
        """What `opencode session export` prints of it."""
        row = self.db.execute("select * from session_v2 where id = ?", (session,)).fetchone()
        info = {"id": session, "projectID": "project", "title": row["title"], "parentID": row["parent_id"]}
        times = {name: row[f"time_{name}"] for name in ("created", "updated", "archived")}
        messages = self.db.execute(
            "select id, type, data from session_message where session_id = ? order by seq", (session,)
        )
        return {
            "info": {name: value for name, value in info.items() if value is not None}
            | {
                "time": {name: ms for name, ms in times.items() if ms is not None},
                "location": {"directory": row["directory"]},
            }
            | ({"agent": row["agent"]} if row["agent"] else {}),
            "messages": [{"id": one["id"], "type": one["type"], **json.loads(one["data"])} for one in messages],
        }

    def use_version_1(self, *snapshots: Fields) -> None:
        """An OpenCode 1 is used after the migration: it writes to its own tables, which nobody copies any more."""
        beside = built(self.path.with_name("beside.db"), *snapshots)
        self.db.execute("attach ? as beside", (str(beside),))
        for table in ("session", "message", "part"):
            self.db.execute(f"insert or ignore into main.{table} select * from beside.{table}")  # noqa: S608 - names from above
        self.db.execute("detach beside")
        beside.unlink()

    def _insert(self, table: str, row: Fields) -> None:
        places = ", ".join("?" * len(row))
        self.db.execute(f"insert into {table} ({', '.join(row)}) values ({places})", [*row.values()])  # noqa: S608


def text(value: str) -> Fields:
    return {"type": "text", "text": value}


def reasoning(value: str) -> Fields:
    return {"type": "reasoning", "text": value, "time": {"created": BEGAN_MS, "completed": BEGAN_MS + 5}}


def tool(name: str, *, output: str | None = "", status: str = "completed", **state: Any) -> Fields:
    told = {"status": status, "input": {"path": "README.md"}, **state}
    if output is not None:
        told["content"] = [text(output)]
    times = {"created": BEGAN_MS + 1, "ran": BEGAN_MS + 2, "completed": BEGAN_MS + 9}
    return {"type": "tool", "id": "call/1", "name": name, "executed": False, "state": told, "time": times}

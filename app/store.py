"""OpenCode's own store, read and never written: the SQLite generation of OpenCode 1.18.

One file holds all projects; `session`, `message` and `part` are what `opencode export` prints: a row's ids and its
`data` together are one `info` or one part, and the order is by creation time and id.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from app.opencode import ExportError, File
from app.transcript import Json


def store_file(environ: Mapping[str, str]) -> Path:
    """Where OpenCode keeps it, unless told otherwise by OPENCODE_DB."""
    named = environ.get("OPENCODE_DB")
    if named and Path(named).is_absolute():
        return Path(named)
    data = environ.get("XDG_DATA_HOME")
    share = Path(data) if data else Path(environ.get("HOME", "/")) / ".local" / "share"
    return share / "opencode" / (named or "opencode.db")


def stored(path: Path, session: str) -> list[File]:
    """A session and, after it, the subagents that its task calls name, each as `opencode export` would have put it.

    In memory only. Raises ExportError when there is no such session or no such store, sqlite3.Error when it cannot be
    read.
    """
    if not path.is_file():
        raise ExportError(f"OpenCode's store {path} is not there")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        found: dict[str, File] = {}
        ahead = [session]
        while ahead:
            name = ahead.pop()
            if name in found:
                continue
            entry = _entry(db, name)
            if entry is None and name == session:
                raise ExportError(f"OpenCode's store {path} holds no session {session}")
            if entry is not None:
                found[name] = File(name, json.dumps(entry).encode())
                ahead += _subagents(db, name)
    return list(found.values())


def _entry(db: sqlite3.Connection, session: str) -> dict[str, Json] | None:
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
    parts: dict[str, list[Json]] = {}
    rows = db.execute("select id, message_id, data from part where session_id = ? order by id", (session,))
    for part in rows:
        ids = {"id": part["id"], "messageID": part["message_id"], "sessionID": session}
        parts.setdefault(part["message_id"], []).append({**json.loads(part["data"]), **ids})
    rows = db.execute("select id, data from message where session_id = ? order by time_created, id", (session,))
    messages: list[Json] = [
        {
            "info": {**json.loads(message["data"]), "id": message["id"], "sessionID": session},
            "parts": list(parts.get(message["id"], [])),
        }
        for message in rows
    ]
    return {"info": info, "messages": messages}


def _subagents(db: sqlite3.Connection, session: str) -> list[str]:
    rows = db.execute(
        "select json_extract(data, '$.state.metadata.sessionId') as name from part"
        " where session_id = ? and json_extract(data, '$.type') = 'tool' order by id",
        (session,),
    )
    return [row["name"] for row in rows if isinstance(row["name"], str)]

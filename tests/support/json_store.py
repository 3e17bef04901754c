"""OpenCode's store as 1.0 and 1.1 write it: a JSON file for each session, message and part, as 1.1.65 lays them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Fields = dict[str, Any]
PROJECT = "0f" * 20


def put(folder: Path, *snapshots: Fields) -> Path:
    """Write what the snapshots show into `storage/` of the folder; where OpenCode's SQLite file would lie."""
    storage = folder / "storage"
    (storage / "session").mkdir(parents=True, exist_ok=True)
    for entry in (entry for snapshot in snapshots for entry in snapshot["sessions"]):
        session = entry["info"]["id"]
        _write(storage / "session" / PROJECT / f"{session}.json", {"projectID": PROJECT, **entry["info"]})
        for message in entry["messages"]:
            info = message["info"]
            _write(storage / "message" / session / f"{info['id']}.json", info)
            for part in message["parts"]:
                _write(storage / "part" / info["id"] / f"{part['id']}.json", part)
    return folder / "opencode.db"


def sessions(storage: Path, directory: Path) -> list[Fields]:
    """The sessions of a directory that lie there, oldest first, named as the columns of a newer OpenCode's table."""
    found = [json.loads(path.read_text("utf-8")) for path in storage.glob("session/*/*.json")]
    own = sorted((one for one in found if one["directory"] == str(directory)), key=lambda one: one["time"]["created"])
    return [{**one, "parent_id": one.get("parentID")} for one in own]


def stored(storage: Path, session: str) -> list[Fields]:
    """Its messages with their parts, in order."""
    infos = [json.loads(path.read_text("utf-8")) for path in (storage / "message" / session).glob("*.json")]
    infos.sort(key=lambda info: (info["time"]["created"], info["id"]))
    return [{"info": info, "parts": _parts(storage / "part" / info["id"])} for info in infos]


def _parts(folder: Path) -> list[Fields]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def _write(path: Path, value: Fields) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))

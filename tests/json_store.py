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


def _write(path: Path, value: Fields) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))

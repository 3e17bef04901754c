"""The recordings: what OpenCode 1.18.33 really wrote and sent, as snapshots. `recordings/README.md` says more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.checkout import DATA

FOLDER = DATA / "recordings"

# Put together here, so that no file of this repository looks as if it held a secret.
SECRETS = {
    "SECRET_1": "sk-" + "FAKEuser" + "KEY" + "0" * 20,
    "SECRET_2": "AKIA" + "FAKEUSER" + "KEY12345",
    "SECRET_3": "gh" + "p_" + "FAKE" * 8 + "0000",
    "SECRET_4": "hunter" + "2",
    "SECRET_5": "sk-" + "FAKEfake" * 3 + "1234567890",
    "SECRET_6": "AKIA" + "FAKE" * 3 + "1234",
}
EMAILS = ("bob@example.com", "alice@example.com")
"""Stand in j_unicode_secrets beside the secrets."""

Snapshot = dict[str, Any]


def names() -> list[str]:
    """All recordings."""
    return sorted(path.stem for path in FOLDER.glob("*.ndjson"))


def exported() -> list[str]:
    """Those with an `opencode export`."""
    return [name for name in names() if (FOLDER / f"{name}.export.json").exists()]


def export_files(name: str) -> list[Path]:
    """The root session's export first, then its subagents'."""
    return [FOLDER / f"{name}.export.json", *sorted(FOLDER.glob(f"{name}.[0-9].export.json"))]


def template(name: str) -> Snapshot:
    """The recording as its exports tell it, with `{{SECRET_1}}` and so on where the secrets stood."""
    return _snapshot([json.loads(path.read_text("utf-8")) for path in export_files(name)])


def export(name: str) -> Snapshot:
    """The recording as its exports tell it."""
    return _snapshot([json.loads(filled(path.read_text("utf-8"))) for path in export_files(name)])


def filled(text: str) -> str:
    """The text with the secrets in place of their placeholders. None of them needs escaping in JSON."""
    for placeholder, secret in SECRETS.items():
        text = text.replace("{{" + placeholder + "}}", secret)
    return text


def events(name: str) -> list[Snapshot]:
    """The session and message events in the order in which the plugin saw them: {"id", "type", "properties"}."""
    lines = filled((FOLDER / f"{name}.ndjson").read_text("utf-8")).split("\n")
    return [json.loads(line)["payload"] for line in lines if line]


def replayed(name: str, events_max: int | None = None) -> dict[str, Snapshot]:
    """What the events, or the first of them, build up: root session id -> snapshot, of the sessions that exist then."""
    sessions: dict[str, Any] = {}
    messages: dict[str, dict[str, Any]] = {}
    for event in events(name)[:events_max]:
        told = event["properties"]
        session = told["sessionID"]
        held = messages.setdefault(session, {})
        match event["type"]:
            case "session.created" | "session.updated":
                sessions[session] = told["info"]
            case "session.deleted":
                del sessions[session]
            case "message.updated":
                held.setdefault(told["info"]["id"], {"parts": {}})["info"] = told["info"]
            case "message.part.updated":
                part = told["part"]
                held.setdefault(part["messageID"], {"parts": {}})["parts"][part["id"]] = part
            case "message.removed":
                held.pop(told["messageID"], None)
            case "message.part.removed":
                held[told["messageID"]]["parts"].pop(told["partID"], None)
    entries = {
        session: {
            "info": info,
            "messages": [
                {"info": message["info"], "parts": list(message["parts"].values())}
                for message in messages[session].values()
            ],
        }
        for session, info in sessions.items()
    }
    roots = [session for session, info in sessions.items() if "parentID" not in info]
    return {root: _snapshot([entries[session] for session in _family(root, sessions)]) for root in roots}


def _family(root: str, sessions: dict[str, Any]) -> list[str]:
    children = [session for session, info in sessions.items() if info.get("parentID") == root]
    return [root, *(member for child in children for member in _family(child, sessions))]


def _snapshot(entries: list[Any]) -> Snapshot:
    return {"root": entries[0]["info"]["id"], "sessions": entries}

"""Every recording gives the records in `golden/`, which were read against the mapping's table.

Those in `golden/first/` are of encoding 1, for sessions that were exported before there was another: they never change.

After a change that is meant: `REWRITE_GOLDEN=1 pytest tests/exporters/helicone/test_golden.py`, and read the diff.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from app.exporters.encoder import Frame, Record
from app.exporters.helicone.naming import session_name
from app.exporters.helicone.records import encode_session, encode_turn
from app.transcript.identity import Encoding
from app.transcript.model import Transcript
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.checkout import DATA

GOLDEN = DATA / "golden"
FIRST = GOLDEN / "first"
SHOWN_RECORDS = 12
SHOWN_CHARACTERS = 300


def snapshot(name: str) -> recorded.Snapshot:
    """As exported, secrets as placeholders; one recording has no export."""
    if name in recorded.exported():
        return recorded.template(name)
    (only,) = recorded.replayed(name).values()
    return only


def records(transcript: Transcript, encoding: Encoding) -> list[Record]:
    session = transcript.session
    frame = Frame(
        session.id, session_name(session.directory, encoding), "/opencode", "", interrupted=True, encoding=encoding
    )
    turns = [record for turn in transcript.turns for record in encode_turn(turn, frame)]
    return [encode_session(session, frame), *turns]


def abbreviated(value: Any) -> Any:
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        digest = hashlib.sha256(value.encode()).hexdigest()[:16]
        return f"{value[:60]}… ({len(value)} characters, sha256 {digest}…)"
    if isinstance(value, list):
        return [abbreviated(item) for item in value]
    return {key: abbreviated(item) for key, item in value.items()} if isinstance(value, dict) else value


def readable(record: Record) -> dict[str, Any]:
    """One record without what stands in it twice (test_record.py compares that); the hash is of every byte."""
    body = json.loads(record.body)
    meta = body["providerRequest"]["meta"]
    shown = {name: value for name, value in meta.items() if name.startswith("Helicone-Property-")}
    return {
        "path": record.path,
        "kind": record.kind,
        "request_id": record.request_id,
        "model": record.model,
        "start_ms": record.start_ms,
        "took_ms": milliseconds(body["timing"]["endTime"]) - milliseconds(body["timing"]["startTime"]),
        "first_token_ms": body["timing"].get("timeToFirstToken"),
        "session_name": meta["Helicone-Session-Name"],
        "properties": {name.removeprefix("Helicone-Property-"): value for name, value in shown.items()},
        "request": abbreviated(body["providerRequest"]["json"]),
        "status": body["providerResponse"]["status"],
        "response": abbreviated(body["providerResponse"]["json"]),
        "body_sha256": hashlib.sha256(record.body).hexdigest(),
    }


def milliseconds(moment: dict[str, int]) -> int:
    return moment["seconds"] * 1000 + moment["milliseconds"]


def rendered(name: str, encoding: Encoding) -> str:
    transcript = parse(snapshot(name))
    made = records(transcript, encoding)
    golden: dict[str, Any] = {
        "recording": name,
        "turns": [
            {"id": turn.id, "final": turn.final, "facts_ms": turn.last_event_ms, "digest": turn.digest}
            for turn in transcript.turns[:SHOWN_RECORDS]
        ],
        "records": [readable(record) for record in made[:SHOWN_RECORDS]],
    }
    if len(made) > SHOWN_RECORDS:
        bodies = hashlib.sha256(b"\n".join(record.body for record in made)).hexdigest()
        golden |= {"records_in_all": len(made), "all_bodies_sha256": bodies}
    return json.dumps(golden, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", recorded.names())
def test_recording_gives_its_golden_records(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    if os.environ.get("REWRITE_GOLDEN") == "1":
        path.write_text(rendered(name, 2), "utf-8")
    assert rendered(name, 2) == path.read_text("utf-8")


@pytest.mark.parametrize("path", sorted(FIRST.glob("*.json")), ids=lambda path: path.stem)
def test_a_session_known_before_gives_what_it_gave(path: Path) -> None:
    assert rendered(path.stem, 1) == path.read_text("utf-8")


def test_no_golden_file_without_its_recording() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == recorded.names()

"""Every recording gives the spans in `golden/otlp/`: ids and bytes never change for what exists.

After a change that is meant: `REWRITE_GOLDEN=1 pytest tests/exporters/otlp/test_golden.py`, and read the diff.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pytest

from tests.support import recorded
from tests.support.checkout import DATA
from tests.support.spans import LISTS, Seen, attributes, records, request, seen, transcript

GOLDEN = DATA / "golden" / "otlp"
SHOWN_TURNS = 4
SHOWN_CHARACTERS = 300


def abbreviated(value: Any) -> Any:
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        digest = hashlib.sha256(value.encode()).hexdigest()[:16]
        return f"{value[:60]}… ({len(value)} characters, sha256 {digest}…)"
    if isinstance(value, list):
        return [abbreviated(item) for item in value]
    return {key: abbreviated(item) for key, item in value.items()} if isinstance(value, dict) else value


def readable(span: Seen) -> dict[str, Any]:
    told = {
        name: json.loads(value) if name in {*LISTS, "gen_ai.tool.call.arguments"} else value
        for name, value in span.attributes.items()
    }
    made = {
        "name": span.name,
        "id": span.id,
        "parent": span.parent,
        "kind": span.kind,
        "start_ms": span.start_ns // 10**6,
        "took_ms": (span.end_ns - span.start_ns) // 10**6,
        "attributes": abbreviated(told),
    }
    if span.status != "UNSET":
        made |= {"status": [span.status, span.status_message], "events": [list(event) for event in span.events]}
    return made


def rendered(name: str) -> str:
    found = [record for turn in transcript(name).turns for record in records(turn)]
    shown = []
    for record in found[:SHOWN_TURNS]:
        (resource,) = request(record.body).resource_spans
        (scope,) = resource.scope_spans
        assert resource.schema_url == scope.schema_url
        shown.append(
            {
                "request_id": record.request_id,
                "path": record.path,
                "start_ms": record.start_ms,
                "body_sha256": hashlib.sha256(record.body).hexdigest(),
                "resource": attributes(resource.resource.attributes),
                "scope": [scope.scope.name, scope.schema_url],
                "spans": [readable(span) for span in seen(record.body)],
            }
        )
    golden: dict[str, Any] = {"recording": name, "records": shown}
    if len(found) > SHOWN_TURNS:
        bodies = hashlib.sha256(b"\n".join(record.body for record in found)).hexdigest()
        golden |= {"records_in_all": len(found), "all_bodies_sha256": bodies}
    return json.dumps(golden, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", recorded.names())
def test_recording_gives_its_golden_spans(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    if os.environ.get("REWRITE_GOLDEN") == "1":
        path.write_text(rendered(name), "utf-8")
    assert rendered(name) == path.read_text("utf-8")


def test_no_golden_file_without_its_recording() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == recorded.names()

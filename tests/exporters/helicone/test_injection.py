"""Titles, names and ids of a session are values in `meta`: they make no header, no level of a path, no file name."""

from __future__ import annotations

import json
import pickle
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.capture.export import split
from app.privacy.policy import Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.transcript.fields import IDENTITY_CHARACTERS_MAX
from app.transcript.identity import Identity
from app.transcript.parse import parse
from tests.support.mutants import check_body
from tests.support.processes import Station, hook, worker
from tests.support.servers import api_key, ok, scripted
from tests.support.snapshots import CREATED_MS, Fields, assistant, entry, snapshot, task, text, tool, user
from tests.support.waiting import wait_until
from tests.test_queue import Planted, plant, waiting

EVIL = "a\r\nX-Injected: yes\r\n\r\n%0d%0a\0\x7f\x85\u2028../../日本\U0001f30d\ud800/b%2F"
NAMES = st.text(min_size=1, max_size=40) | st.sampled_from(
    [
        EVIL,
        "..",
        ".",
        "/",
        "//",
        "%2F",
        "%",
        "\r\n",
        "\0",
        " ",
        "\xa0",
        "é" * 500,
        "日" * 500,
        "x" * IDENTITY_CHARACTERS_MAX,
    ]
)
IDS = NAMES.map(lambda name: "i" + re.sub("[\ud800-\udfff/]", "", name)[:500])
"""What the door takes for an id: no slash, no half a character."""
REDACTION = Redaction.compile((), secrets=True, known_values=())


def hostile(name: str, ident: str) -> Fields:
    """A session with a subagent, `name` in every place of a name and ids that end in `ident`."""
    words: dict[str, Any] = {"agent": name, "mode": name, "finish": name, "providerID": name, "modelID": name}
    made = re.sub("[\ud800-\udfff]", "", name) or "tool"
    asked = user(
        f"u{ident}",
        CREATED_MS + 10,
        text(name),
        {"id": "prt_file", "type": "file", "mime": name, "filename": name},
        agent=name,
    )
    calls = (tool("prt_1", made, callID=name), task(f"child{ident}", "prt_2"))
    answered = assistant(f"v{ident}", CREATED_MS + 20, *calls, parent=f"u{ident}", **words)
    inner = assistant(f"w{ident}", CREATED_MS + 30, tool("prt_3", made), parent=f"x{ident}", **words)
    facts = {"title": name, "directory": f"/home/{name}", "version": name}
    child = entry(inner, id=f"child{ident}", parentID=f"root{ident}", **facts)
    root = entry(asked, answered, id=f"root{ident}", **facts)
    return snapshot(root, child)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES, IDS, st.sampled_from(["full", "metadata_only"]), NAMES)
@example(EVIL, "i" + EVIL.replace("/", "").replace("\ud800", ""), "full", EVIL)
def test_names_stay_values_and_paths_have_their_levels(name: str, ident: str, mode: Any, user_id: str) -> None:
    capturing = Capture(Policy(mode, (), redact_secrets=True, prefix="/opencode"), REDACTION, user_id)
    told, _ = split(parse(hostile(name, ident)), capturing, Identity(user_id), abandoned=True)
    records = [record for one in told for record in one.encode()]
    for record in records:
        check_body(record.body)  # single lines of Latin-1 in `meta`, whatever they came from
        assert json.loads(record.body)["providerRequest"]["meta"]["Helicone-Session-Path"] == record.path
    levels = [record.path.count("/") for record in records]
    # session; user, call, tool, task; under it the subagent's session, its call, its tool
    assert levels == [2, 3, 3, 4, 4, 5, 6, 7]
    assert len({record.request_id for record in records}) == len(records)
    root = records[0].path.split("/")[2]
    assert f"root{ident}".startswith(unquote(root, errors="ignore"))
    if len(root) < 100:
        assert unquote(root) == f"root{ident}"


KNOWN_FILES = re.compile(
    r"(\.gitignore|recover\.lock|(ledger|queue)\.db(-wal|-shm|-journal)?|worker-\d+\.(lock|starting)|"
    r"(hooks|workers)(/[0-9a-f]{32}\.(lock|draft))?|logs(/(hook|worker|plugin)\.log(\.1)?)?)"
)


@pytest.mark.slow
def test_no_header_and_no_file_name_comes_from_a_session(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with scripted(ok()) as server:
        station = Station(
            home,
            f"{server.url}/custom/v1/log",
            api_key("q"),
            {"OPENCODE_HELICONE_USER_ID": "a%0d%0aX-Injected: yes/../日本"},
        )
        evil = hostile(EVIL, re.sub("[/\0\ud800]", "", EVIL))  # a notice's ids hold no NUL
        with hook(station) as process:
            process.show(evil, directory=f"/home/{EVIL}")
            process.end()
        names = {str(path.relative_to(station.spool)) for path in station.spool.rglob("*")}
        assert [name for name in names if not KNOWN_FILES.fullmatch(name)] == []
        executed = plant_messages(station)
        with worker(station):
            wait_until(lambda: station.delivered(2))
            # Rings are still heard, by threads that have met all that was planted.
            wait_until(lambda: waiting(station.spool) == 0)
            ring_again(station)
            wait_until(lambda: waiting(station.spool) == 0)
        assert not executed.exists()
    assert len(server.requests) == 8
    for request in server.requests:
        assert request.line == "POST /custom/v1/log HTTP/1.1"
        assert {name.lower() for name in request.header_names} == HEADERS
        assert not any("njected" in value for value in request.headers.values())
        check_body(request.body)


HEADERS = {"host", "content-length", "authorization", "content-type", "user-agent"}


def plant_messages(station: Station) -> Path:
    """More of each than the consumer has threads; the file that a pickle would make."""
    executed = station.home / "executed"
    bad: list[Any] = [
        {"id": "1", "name": "os.system", "args": [f"touch {executed}"]},
        {"id": "1", "name": "app.bell.deliver", "args": ["k" * 20_000_000]},
        {"id": "1", "name": "app.bell.deliver", "args": [{"a": 1}]},
        {"id": "1", "name": "app.bell.deliver", "args": []},
        {"id": 1, "name": 2, "args": 3},
    ]
    messages = [json.dumps(one).encode() for one in bad] + [b"", b"[]", b"[" * 100_000, b"\xff"]
    for _ in range(20):
        plant(station.spool, pickle.dumps(Planted(executed)))
    for data in messages:
        plant(station.spool, data)
    return executed


def ring_again(station: Station) -> None:
    with closing(sqlite3.connect(station.spool / "queue.db")) as db:
        assert db.execute("select count(*) from task").fetchone()[0] == 0
    for _ in range(20):
        plant(station.spool, json.dumps({"id": "2", "name": "app.bell.deliver", "args": ["a" * 64]}).encode())

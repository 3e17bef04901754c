"""What the real OpenCode makes of a fork, of `/undo` and of a sanitized export."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.exporters.encoder import Frame
from app.exporters.helicone.records import encode_turn
from app.sources.opencode.store import Store
from app.transcript.model import Transcript, Turn
from tests.support.opencode import OpenCode, Server
from tests.support.processes import Station
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.opencode"]
pytestmark = pytest.mark.opencode


@pytest.fixture
def server(opencode: OpenCode, tmp_path: Path) -> Iterator[Server]:
    with opencode.serve(opencode.project(tmp_path / "project")) as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path) -> Station:
    home = tmp_path / "machine"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


def store_of(opencode: OpenCode) -> Store:
    return Store(opencode.home / ".local" / "share" / "opencode" / "opencode.db")


def stored(opencode: OpenCode, session: str, turns: int) -> Transcript:
    """The session, once all of its turns have ended in the store."""
    found: list[Transcript] = []

    def has_ended() -> bool:
        transcript = store_of(opencode).transcript(session)
        found[:] = [] if transcript is None else [transcript]
        return bool(found) and [turn.final for turn in found[0].turns] == [True] * turns

    wait_until(has_ended)
    return found[0]


def export(opencode: OpenCode, server: Server, session: str, *options: str) -> str:
    """Written by the real `opencode export` into a file, with what it says elsewhere."""
    path = server.project.parent / f"{session}{''.join(options)}.json"
    with path.open("wb") as file:
        subprocess.run(
            [str(opencode.binary), "--pure", "export", session, *options],
            cwd=server.project,
            env={**opencode.environ, "PWD": str(server.project)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=120,
        )
    return str(path)


def imported(machine: Station, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = typed(machine, "import", "--json", *arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    found: list[dict[str, Any]] = json.loads(done.stdout)["files"]
    return found


def test_a_forks_copies_are_told_by_their_ids_and_left_to_a_known_origin(
    opencode: OpenCode, server: Server, machine: Station, tmp_path: Path
) -> None:
    origin = server.new_session()
    server.prompt(origin, "[[script:tools]] work")
    fork = server.request("POST", f"/session/{origin}/fork", {})["id"]
    server.prompt(fork, "[[script:second]] and then?")
    (own,) = stored(opencode, origin, 1).turns
    copied, added = stored(opencode, fork, 2).turns
    assert (own.is_copy, copied.is_copy, added.is_copy) == (False, True, False)
    assert (copied.last_event_ms, copied.id != own.id) == (own.last_event_ms, True)

    files = [export(opencode, server, one) for one in (fork, origin)]
    told = {one["session"]: one for one in imported(machine, *files)}
    assert "skipped" in told[fork]["reason"]  # "Exporting session: …" stands in the file, too
    assert (told[origin]["new"], told[fork]["new"], told[fork]["copied"]) == (2, 2, 1)
    said = typed(machine, "verify", "--db", str(store_of(opencode).path), "--session", fork).stdout
    assert "1 copied by a fork" in said

    home = tmp_path / "another"
    home.mkdir()
    (alone,) = imported(Station(home, "http://127.0.0.1:9"), files[0])
    assert (alone["new"], alone["copied"]) == (3, 0)


def test_what_is_undone_carries_a_property_until_it_is_taken_back(opencode: OpenCode, server: Server) -> None:
    session = server.new_session()
    for number in range(2):
        server.prompt(session, f"[[script:hello]] prompt {number}")
    before = stored(opencode, session, 2)
    server.request("POST", f"/session/{session}/revert", {"messageID": before.turns[1].id})
    undone = stored(opencode, session, 2)
    assert [is_marked(turn) for turn in undone.turns] == [False, True]
    assert undone.turns[0].digest == before.turns[0].digest
    alone = store_of(opencode).turn(session, before.turns[1].id)
    assert alone is not None
    assert alone.turns[0].digest == undone.turns[1].digest
    server.request("POST", f"/session/{session}/unrevert")
    assert [turn.digest for turn in stored(opencode, session, 2).turns] == [turn.digest for turn in before.turns]


def is_marked(turn: Turn) -> bool:
    frame = Frame(turn.session.id, "opencode", "/opencode", "", interrupted=False, encoding=2)
    marks = {b'"Helicone-Property-undone":"true"' in record.body for record in encode_turn(turn, frame)}
    (mark,) = marks
    return mark


def test_the_placeholders_of_a_sanitized_export_do_not_replace_a_session_that_is_known(
    opencode: OpenCode, server: Server, machine: Station
) -> None:
    session = server.new_session()
    server.prompt(session, "[[script:hello]] a secret plan")
    stored(opencode, session, 1)
    imported(machine, export(opencode, server, session))
    path = export(opencode, server, session, "--sanitize")
    assert "a secret plan" not in Path(path).read_text()
    (told,) = imported(machine, path, code=1)
    assert "--sanitized" in told["reason"]
    (told,) = imported(machine, path, "--sanitized")
    assert told["new"] == 2

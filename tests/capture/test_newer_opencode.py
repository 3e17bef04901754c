"""OpenCode 2's sessions by every way in: each turn once, whichever way comes first."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from app.sources.opencode.store import store_file
from tests.sources.opencode.test_newer import old
from tests.support.newer_store import NewerStore, text, tool
from tests.support.processes import PROJECT, Station, hook

WAYS = ("notice", "backfill", "import")
EVER = ("--since", "2000-01-01", "--max-logs", "100000")


@pytest.fixture
def station(tmp_path: Path) -> Station:
    return Station(tmp_path / "home", "http://127.0.0.1:9")


class Machine:
    """What OpenCode 2 has, fresh or migrated, and what of it is to be captured."""

    def __init__(self, station: Station, tmp_path: Path, *, is_migrated: bool) -> None:
        self.station = station
        self.folder = tmp_path
        path = store_file(station.environ)
        path.parent.mkdir(parents=True)
        kept, gone = old("ses_kept", "a", "b", "c", synthetic="read README"), old("ses_gone", "d")
        self.newer = newer = NewerStore(path, *([kept, gone] if is_migrated else []))
        self.expected = Counter[tuple[str, str]]()
        if is_migrated:
            newer.migrate()
            newer.delete("ses_gone")
            newer.revert("ses_kept", "msg_c")
            self.expect("ses_kept", "msg_a", "msg_b", newer.turn("ses_kept", "in 2.x", "yes"))
        newer.session("ses_newer", title="a title", directory=PROJECT)
        newer.session("ses_child", title="a subagent", directory=PROJECT, parent_id="ses_newer")
        newer.turn("ses_child", "look", "looked")
        asked = newer.user("ses_newer", "look around")
        newer.assistant("ses_newer", tool("subagent", output="looked", metadata={"sessionID": "ses_child"}))
        newer.assistant("ses_newer", text("done"))
        newer.idle("ses_newer")
        gone_turn = newer.turn("ses_newer", "undone", "soon")
        newer.revert("ses_newer", gone_turn)
        self.expect("ses_newer", asked, newer.turn("ses_newer", "and?", "that"))
        newer.db.execute("update session_v2 set directory = ?", (PROJECT,))

    def expect(self, session: str, *turns: str) -> None:
        self.expected.update({(session, turn) for turn in (*turns, "session")})

    def of(self, session: str) -> Counter[tuple[str, str]]:
        return Counter(one for one in self.expected if one[0] == session)

    def take(self, way: str) -> None:
        if way == "notice":
            with hook(self.station) as running:
                for session in ("ses_kept", "ses_newer", "ses_child", "ses_gone"):
                    running.notice(session)
                running.wait_for_ack()
            return
        arguments = list(EVER)
        if way == "import":
            arguments = [str(self.exported(session)) for session in ("ses_newer", "ses_child")]
        done = self.station.run(way, *arguments)
        assert done.returncode == 0, done.stderr

    def exported(self, session: str) -> Path:
        path = self.folder / f"{session}.json"
        path.write_text(json.dumps(self.newer.export(session)))
        return path

    def found(self) -> Counter[tuple[str, str]]:
        with self.station.ledger() as db:
            rows = db.execute(
                "select s.name, t.name from job j join session s on s.id = j.session_id join turn t on t.id = j.turn_id"
                " where j.state <> 'superseded' or t.name <> 'session'"
            )
            return Counter((session, turn) for session, turn in rows)


@pytest.mark.slow
@pytest.mark.parametrize("is_migrated", [False, True], ids=["fresh", "migrated"])
@pytest.mark.parametrize("first", WAYS)
def test_every_turn_is_taken_once_by_all_ways_together(
    station: Station, tmp_path: Path, first: str, *, is_migrated: bool
) -> None:
    machine = Machine(station, tmp_path, is_migrated=is_migrated)
    machine.take(first)
    once = machine.found()
    assert once == (machine.expected if first != "import" else machine.of("ses_newer"))
    for way in WAYS:
        machine.take(way)
    assert machine.found() == machine.expected
    verified = station.run("verify", "--json")
    assert verified.returncode == 0, verified.stdout

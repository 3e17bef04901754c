"""What `doctor` finds: each thing that can be wrong, made wrong, beside a machine where all is well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app import clock, destination, install
from app.helicone import NOT_STORED_CAUSES
from app.presence import Announced
from app.spool import Spool
from tests.desk import Desk, version
from tests.processes import Station
from tests.servers import Exchange, answer, receiving, scripted, whole
from tests.test_cli import example, said, shape
from tests.test_letters import die
from tests.typed import typed

PLUGIN = Path("config/opencode/plugin/opencode-helicone.js")


@pytest.fixture
def station(tmp_path: Path, migrated: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    made = Station(home, "http://127.0.0.1:9")
    shutil.copytree(migrated, made.spool)
    assert typed(made, "install-plugin").returncode == 0
    return made


def findings(station: Station, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = typed(station, "doctor", "--json", "--set", "maxSpoolSize=1000000", *arguments)
    found: list[dict[str, Any]] = said(done, code)["findings"]
    assert code == any(one["level"] == "problem" for one in found)
    return found


def bad(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["check"], one["level"]) for one in found if one["level"] != "ok"]


def test_where_all_is_well_every_check_is_ok(station: Station) -> None:
    found = findings(station)
    assert bad(found) == []
    assert [one["check"] for one in found] == [
        "settings", "key", "redaction", "spool", "disk", "SQLite", "plugin", "OpenCode's store", "ledger",
        "queue.db", "processes", "destination", "clock", "lines", "dead",
    ]  # fmt: skip
    assert shape(found[0]) == shape(example("doctor")["findings"][0])
    lines = typed(station, "doctor").stdout.splitlines()
    assert len(lines) == len(found)
    assert lines[0].startswith("ok       settings: version ")


def test_doctor_makes_a_missing_ledger_and_says_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    found = findings(Station(tmp_path / "home", "http://127.0.0.1:9"))
    assert bad(found) == [("plugin", "warning")]


def loosen(station: Station) -> None:
    station.spool.chmod(0o755)


def loosen_the_ledger(station: Station) -> None:
    (station.spool / "ledger.db").chmod(0o644)


def open_the_plugin(station: Station) -> None:
    (station.home / PLUGIN).chmod(0o666)


def age_the_plugin(station: Station) -> None:
    path = station.home / PLUGIN
    path.write_text(path.read_text("utf-8") + "// of another version\n", "utf-8")


def replace_the_plugin(station: Station) -> None:
    (station.home / PLUGIN).write_text("export const Other = 1\n", "utf-8")


def unplug(station: Station) -> None:
    (station.home / PLUGIN).unlink()


def bring_an_old_opencode(station: Station) -> None:
    (station.home / "data" / "opencode" / "storage" / "session").mkdir(parents=True)


def break_the_queue(station: Station) -> None:
    (station.spool / "queue.db").write_text("no database")
    (station.spool / "queue.db").chmod(0o600)


def from_the_future(station: Station) -> None:
    with station.ledger() as db:
        db.execute("pragma user_version = 99")


def no_ledger(station: Station) -> None:
    (station.spool / "ledger.db").write_text("no database" * 100)


def lose_a_line(station: Station) -> None:
    with station.ledger() as db:
        destination.refuse(db, "not JSON", 1)


def note_an_incident(station: Station) -> None:
    with station.ledger() as db:
        destination.note(db, "the clock jumped", 1)


def kill_and_drop(station: Station) -> None:
    with station.ledger() as db:
        desk = Desk(db)
        die(desk, version())
        desk.put(version("off"), off=True)
        desk.put(version("aged"))
        db.execute(
            "update job set state = 'dropped', drop_reason = 'age', due_ms = null, finished_ms = 1, body_bytes = 0"
            " where key = ?",
            (version("aged").key,),
        )


def set_the_clock_back(station: Station) -> None:
    with station.ledger() as db:
        desk = Desk(db)
        desk.now_ms = clock.now_ms() + 3_600_000
        desk.put(version())
        desk.deliver(version())


@pytest.mark.parametrize(
    ("harm", "expected", "word"),
    [
        (loosen, [("spool", "problem")], "mode 0755"),
        (loosen_the_ledger, [("spool", "problem")], "ledger.db has mode 0644"),
        (open_the_plugin, [("plugin", "problem")], "can be written by other users"),
        (age_the_plugin, [("plugin", "warning")], "another version"),
        (replace_the_plugin, [("plugin", "problem")], "not written by"),
        (unplug, [("plugin", "warning")], "not installed"),
        (bring_an_old_opencode, [("OpenCode's store", "warning")], "JSON files of an older OpenCode"),
        (break_the_queue, [("queue.db", "warning")], "not a database"),
        (from_the_future, [("ledger", "problem")], "schema 99"),
        (lose_a_line, [("lines", "warning")], "1 line(s) of the plugin were lost: not JSON"),
        (note_an_incident, [("incident", "warning")], "the clock jumped"),
        (kill_and_drop, [("dead", "warning"), ("dropped", "warning")], "1 dead letter(s)"),
        (set_the_clock_back, [("clock", "warning")], "ahead of the clock"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_is_found_and_nothing_else(
    station: Station, harm: Callable[[Station], None], expected: list[tuple[str, str]], word: str
) -> None:
    harm(station)
    found = findings(station, code=int(any(level == "problem" for _, level in expected)))
    assert bad(found) == expected
    assert any(word in one["found"] for one in found)
    assert all(one["todo"] for one in found if one["level"] != "ok")


def test_a_ledger_that_had_to_be_recovered_is_told_of(station: Station) -> None:
    no_ledger(station)
    found = findings(station)
    assert set(bad(found)) == {("incident", "warning")}
    assert any("ledger: damaged, set aside and recovered" in one["found"] for one in found)


@pytest.mark.parametrize(
    ("variables", "check", "level"),
    [
        ({"HELICONE_API_KEY": ""}, "key", "problem"),
        ({"HELICONE_API_KEY": "placeholder"}, "key", "warning"),
        ({"OPENCODE_HELICONE_MAX_RETRIES": "many"}, "settings", "problem"),
        ({"OPENCODE_HELICONE_REDACT_PATTERNS": '["(open"]'}, "redaction", "problem"),
    ],
    ids=["no key", "odd key", "settings", "pattern"],
)
def test_wrong_settings_are_findings(station: Station, variables: dict[str, str], check: str, level: str) -> None:
    here = replace(station, variables=variables)
    assert bad(findings(here, code=int(level == "problem"))) == [(check, level)]


def test_a_full_disk_is_found(station: Station) -> None:
    found = findings(station, "--set", f"maxSpoolSize={2**50}")
    assert bad(found) == [("disk", "warning")]


@pytest.mark.parametrize(("health", "level"), [("down", "warning"), ("refused", "problem")])
def test_a_destination_that_is_not_fine_is_named_with_its_reason(station: Station, health: Any, level: str) -> None:
    desk_words = {"health": health, "reason": "401: error Unauthorized", "count": 1, "probe_ms": 1, "now_ms": 1}
    with station.ledger() as db:
        fingerprint = destination.fingerprint(db, station.key)
        ours = destination.destination(db, station.endpoint, fingerprint, 1)
        destination.pause(db, ours.id, **desk_words)
    found = findings(station, code=int(level == "problem"))
    assert bad(found) == [("destination", level)]
    assert any("401: error Unauthorized" in one["found"] for one in found)


def test_jobs_that_nobody_delivers_are_found(station: Station) -> None:
    with station.ledger() as db:
        desk = Desk(db)
        ours = destination.destination(db, station.endpoint, destination.fingerprint(db, station.key), 1)
        desk.destination = ours.id
        desk.put(version())
    assert bad(findings(station)) == [("processes", "warning")]
    worker = Announced(Spool(station.spool).workers)
    try:
        worker.say({"destination": ours.id})
        assert bad(findings(station)) == []
    finally:
        worker.withdraw()


def test_the_plugin_of_a_project_counts_too(station: Station) -> None:
    unplug(station)
    install.install(install.Project(station.home), python="")
    assert bad(findings(station)) == []


def test_neither_key_nor_transcript_is_printed(station: Station) -> None:
    kill_and_drop(station)
    done = typed(station, "doctor")
    assert station.key not in done.stdout + done.stderr


# --- --send


def test_send_finds_its_log_at_a_helicone_that_stores(station: Station, tmp_path: Path) -> None:
    with receiving(tmp_path / "store.db") as receiver:
        found = findings(replace(station, endpoint=receiver.url), "--send")
        findings(replace(station, endpoint=receiver.url), "--send")
        rows = receiver.rows()
    assert bad(found) == []
    assert [one["check"] for one in found[-2:]] == ["send", "read back"]
    assert [(row.path, row.log.model) for row in rows] == [("/doctor", "opencode/doctor")] * 2
    # Helicone's list of sessions has one line for all of them.
    assert {row.log.properties["Helicone-Session-Id"] for row in rows} == {"opencode-helicone-doctor"}


def test_send_names_the_known_causes_when_its_log_does_not_appear(station: Station) -> None:
    def forget(exchange: Exchange) -> None:
        exchange.read_body()
        is_log = "custom" in exchange.heard.line
        exchange.send(whole(200, b"") if is_log else whole(201, b'{"data": [], "error": null}'))

    with scripted(forget) as server:
        here = replace(station, endpoint=server.url)
        found = findings(here, "--send", "--timeout", "0", code=1)
        assert bad(found)[0] == ("read back", "problem")
        text = typed(here, "doctor", "--send", "--timeout", "0").stdout
    assert [one["found"] for one in found if one["check"] == "known cause"] == list(NOT_STORED_CAUSES)
    assert all(cause in text for cause in NOT_STORED_CAUSES)
    assert len(NOT_STORED_CAUSES) == 4


def test_send_says_what_was_answered(station: Station) -> None:
    with scripted(answer(401, json.dumps({"error": f"unknown {station.key}"}).encode())) as server:
        found = findings(replace(station, endpoint=server.url), "--send", code=1)
    assert (found[-1]["check"], found[-1]["level"]) == ("send", "problem")
    assert "401: error unknown [key]" in found[-1]["found"]


def test_send_tries_the_other_route_and_names_a_read_back_that_fails(station: Station) -> None:
    def only_the_worker(exchange: Exchange) -> None:
        exchange.read_body()
        if exchange.heard.line.startswith("POST /custom/"):
            request_id = json.loads(exchange.heard.body)["providerRequest"]["meta"]["Helicone-Request-Id"]
            exchange.send(whole(200, b"ok", {"helicone-id": request_id}))
        else:
            exchange.send(whole(404, b""))

    with scripted(only_the_worker) as server:
        found = findings(replace(station, endpoint=server.url), "--send", code=1)
        elsewhere = replace(station, endpoint=f"{server.url}/custom/v1/log")
        unknown = findings(elsewhere, "--send")
    assert [(one["check"], one["level"]) for one in found[-2:]] == [("send", "ok"), ("read back", "problem")]
    assert (unknown[-1]["check"], unknown[-1]["level"]) == ("read back", "warning")


def test_send_without_a_key_sends_nothing(station: Station) -> None:
    found = findings(replace(station, variables={"HELICONE_API_KEY": ""}), "--send", code=1)
    assert bad(found) == [("key", "problem"), ("send", "problem")]

"""What `doctor` finds: each thing that can be wrong, made wrong, beside a machine where all is well."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.capture.reconcile import QUIET_MS
from app.exporters.helicone.traits import NOT_STORED_CAUSES
from app.ledger import destinations, flow, folders, incidents, notices
from app.runtime import clock
from app.runtime.liveness import Announced
from app.runtime.spool import Spool
from app.sources.opencode import install
from app.sources.opencode.logins import FILE_BYTES_MAX
from app.sources.opencode.store import store_file
from tests.ledger.test_dead_letters import die
from tests.sources.opencode.test_store import built
from tests.support import json_store
from tests.support.ledger_bench import LedgerBench, version
from tests.support.newer_store import NewerStore
from tests.support.processes import Station, hook
from tests.support.recorded import export
from tests.support.servers import Exchange, answer, receiving, scripted, whole
from tests.support.typed_commands import typed
from tests.system.test_cli import example, said, shape

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
    assert list(dict.fromkeys(one["check"] for one in found)) == [
        "settings", "key", "configuration", "redaction", "spool", "disk", "SQLite", "plugin", "OpenCode",
        "OpenCode's store", "ledger", "queue.db", "processes", "destination", "clock", "lines", "dead",
    ]  # fmt: skip
    assert shape(found[0]) == shape(example("doctor")["findings"][0])
    lines = typed(station, "doctor", "-v").stdout.splitlines()
    assert len(lines) == 1 + len(found)
    assert lines[1].startswith("ok settings: version ")


def test_doctor_makes_a_missing_ledger_and_says_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    found = findings(Station(tmp_path / "home", "http://127.0.0.1:9"))
    assert bad(found) == [("plugin", "warning")]


def test_an_opencode_that_was_never_started_is_no_fault(station: Station) -> None:
    store_file(station.environ).parent.mkdir(parents=True)
    found = findings(station)
    assert bad(found) == []
    (told,) = (one["found"] for one in found if one["check"] == "OpenCode's store")
    assert told == f"{store_file(station.environ)} is not there yet"


def test_the_spool_may_lie_where_the_predecessors_did(station: Station) -> None:
    spool = ".opencode/helicone-spool"
    found = findings(station, "--spool-directory", str(station.home / spool))
    assert bad(found) == []


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


def bring_an_unknown_store(station: Station) -> None:
    path = store_file(station.environ)
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table session (id text primary key)")


def log_in_without_end(station: Station) -> None:
    (station.home / "data" / "opencode").mkdir(parents=True)
    (station.home / "data" / "opencode" / "auth.json").write_bytes(b" " * (FILE_BYTES_MAX + 1))


def leave_the_predecessors_spool(station: Station) -> None:
    (station.home / ".opencode" / "helicone-spool").mkdir(parents=True)


def break_the_queue(station: Station) -> None:
    (station.spool / "queue.db").write_text("no database")
    (station.spool / "queue.db").chmod(0o600)


def leave_a_session_unread(station: Station) -> None:
    with station.ledger() as db:
        notices.note_notice(db, "store", "ses_1", "here", clock.now_ms())
        notices.note_notice(db, "store", "ses_2", "here", clock.now_ms())  # about to be read: no fault
        notices.note_wait(db, "store", ["ses_1"], "OpenCode's store is not there")


def leave_a_session_that_nobody_reads(station: Station) -> None:
    with station.ledger() as db:
        notices.note_notice(db, "store", "ses_1", "here", clock.now_ms() - QUIET_MS - 1)


def from_the_future(station: Station) -> None:
    with station.ledger() as db:
        db.execute("pragma user_version = 99")


def no_ledger(station: Station) -> None:
    (station.spool / "ledger.db").write_text("no database" * 100)


def lose_a_line(station: Station) -> None:
    with station.ledger() as db:
        incidents.refuse(db, "not JSON", 1)


def note_an_incident(station: Station) -> None:
    with station.ledger() as db:
        incidents.note(db, "the clock jumped", 1)


def kill_and_drop(station: Station) -> None:
    with station.ledger() as db:
        bench = LedgerBench(db)
        die(bench, version())
        bench.put(version("off"), off=True)
        bench.put(version("aged"))
        db.execute(
            "update job set state = 'dropped', drop_reason = 'age', due_ms = null, finished_ms = 1, body_bytes = 0"
            " where key = ?",
            (version("aged").key,),
        )


def set_the_clock_back(station: Station) -> None:
    with station.ledger() as db:
        bench = LedgerBench(db)
        bench.now_ms = clock.now_ms() + 3_600_000
        bench.put(version())
        bench.deliver(version())


@pytest.mark.parametrize(
    ("harm", "expected", "word"),
    [
        (loosen, [("spool", "problem")], "mode 0755"),
        (loosen_the_ledger, [("spool", "problem")], "ledger.db has mode 0644"),
        (open_the_plugin, [("plugin", "problem")], "can be written by other users"),
        (age_the_plugin, [("plugin", "warning")], "another version"),
        (replace_the_plugin, [("plugin", "problem")], "not written by"),
        (unplug, [("plugin", "warning")], "not installed"),
        (bring_an_unknown_store, [("OpenCode's store", "problem")], "is no store of OpenCode 1.18"),
        (log_in_without_end, [("logins", "problem")], "auth.json: it is larger than"),
        (leave_the_predecessors_spool, [("spool", "warning")], "of opencode-helicone-async-telemetry: nothing sends"),
        (break_the_queue, [("queue.db", "warning")], "not a database"),
        (
            leave_a_session_unread,
            [("unread", "warning")],
            "1 session(s) that OpenCode has told of wait: OpenCode's store",
        ),
        (
            leave_a_session_that_nobody_reads,
            [("unread", "warning")],
            "1 session(s) that OpenCode has told of were not read",
        ),
        (from_the_future, [("ledger", "problem")], "schema 99"),
        (lose_a_line, [("lines", "warning")], "1 line(s) of the plugin were not used: not JSON"),
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
    paused(station, health, "401: error Unauthorized")
    found = findings(station, code=int(level == "problem"))
    assert bad(found) == [("destination", level)]
    assert any("401: error Unauthorized" in one["found"] for one in found)


def paused(station: Station, health: Any, reason: str) -> None:
    with station.ledger() as db:
        fingerprint = destinations.fingerprint(db, station.key)
        ours = destinations.destination(db, station.endpoint, fingerprint, 1)
        flow.pause(db, ours.id, health=health, reason=reason, count=1, probe_ms=1, now_ms=1)


@pytest.mark.parametrize(
    ("health", "reason", "told", "command"),
    [
        (
            "refused",
            "401: error Unauthorized",
            "; the key is from environment HELICONE_API_KEY",
            "unset HELICONE_API_KEY (or set it right where OpenCode is started)",
        ),
        (
            "down",
            "ConnectError: Connection refused",
            "Connection refused",
            (
                "opencode-helicone receiver --port 9 in another terminal (if it is that receiver), then"
                " opencode-helicone flush"
            ),
        ),
    ],
)
def test_doctor_and_status_say_the_same_of_what_to_type(
    station: Station, health: str, reason: str, told: str, command: str
) -> None:
    paused(station, health, reason)
    (found,) = [one for one in findings(station, code=int(health == "refused")) if one["check"] == "destination"]
    assert told in found["found"]
    assert found["command"] == command
    assert command in typed(station, "status").stdout


def test_jobs_that_nobody_delivers_are_found(station: Station) -> None:
    with station.ledger() as db:
        bench = LedgerBench(db)
        ours = destinations.destination(db, station.endpoint, destinations.fingerprint(db, station.key), 1)
        bench.destination = ours.id
        bench.put(version())
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
    own = Path(sys.executable).parent
    assert bad(findings(replace(station, variables={"PATH": str(own)}))) == []
    elsewhere = replace(station, variables={"PATH": "/usr/bin"})
    assert bad(findings(elsewhere, code=1)) == [("plugin", "problem")]


def opencode(station: Station, version: str) -> Station:
    """A machine on whose PATH is an OpenCode that says this."""
    folder = station.home / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "opencode").write_text(f"#!/bin/sh\necho {version}\n")
    (folder / "opencode").chmod(0o755)
    return replace(station, variables={"PATH": f"{folder}:{station.environ['PATH']}"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "flavour", "expected"),
    [
        ("1.2.4", "object", ["plugin"]),
        ("1.3.2", "function", []),
        ("1.14.0", "object", []),
        ("1.18.33", "function", []),
        ("2.1.0", "function", ["plugin", "OpenCode", "OpenCode"]),
        ("2.1.0", "object", ["OpenCode"]),
    ],
)
def test_a_form_of_the_plugin_that_opencode_cannot_load_is_found(
    station: Station, version: str, flavour: install.Flavour, expected: list[str]
) -> None:
    config = install.Global(station.home / "config" / "opencode")
    install.install(config, python=sys.executable, flavour=flavour)
    found = findings(opencode(station, version), code=int("plugin" in expected))
    assert [check for check, _ in bad(found)] == expected[:2]
    assert any(f"OpenCode {version} (" in one["found"] for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("says", ["latest", "0.0.0-dev-202611", "1.18", ""])
def test_an_opencode_that_says_nothing_of_use_is_named(station: Station, says: str) -> None:
    found = findings(opencode(station, says))
    assert bad(found) == [("OpenCode", "warning")]
    (told,) = (one["found"] for one in found if one["check"] == "OpenCode")
    assert told == f"{station.home}/bin/opencode does not say its version"


def talked(station: Station, *, updated_ms: int) -> None:
    wanted = export("a_simple")
    wanted["sessions"][0]["info"]["time"]["updated"] = updated_ms
    store_file(station.environ).parent.mkdir(parents=True)
    built(store_file(station.environ), wanted)


@pytest.mark.parametrize("is_seen", [False, True], ids=["never", "seen"])
def test_sessions_of_which_no_hook_ever_heard_are_found(station: Station, *, is_seen: bool) -> None:
    now_ms = clock.now_ms()
    os.utime(station.home / PLUGIN, (now_ms / 1000 - 7_200,) * 2)
    talked(station, updated_ms=now_ms - 3_600_000)
    if is_seen:
        with station.ledger() as db:
            ours = destinations.destination(db, station.endpoint, destinations.fingerprint(db, station.key), 1)
            directory = export("a_simple")["sessions"][0]["info"]["directory"]
            folders.remember_folder(db, destinations.fingerprint(db, directory), ours.id, {}, 1)
    found = findings(station, code=int(not is_seen))
    assert bad(found) == ([] if is_seen else [("hook", "problem")])


def test_sessions_from_before_the_plugin_are_nobodys_fault(station: Station) -> None:
    talked(station, updated_ms=clock.now_ms() - 3_600_000)
    assert bad(findings(station)) == []


@pytest.mark.parametrize("is_upgraded", [False, True], ids=["fresh", "upgraded"])
def test_that_opencode_2_was_not_tried_is_told(station: Station, *, is_upgraded: bool) -> None:
    path = store_file(station.environ)
    path.parent.mkdir(parents=True)
    newer = NewerStore(path, *([export("a_simple")] if is_upgraded else []))
    newer.turn(newer.session("ses_newer"), "one", "1")
    found = findings(station)
    assert bad(found) == []
    (told,) = (one["found"] for one in found if one["check"] == "OpenCode's store")
    assert (
        told
        == f"{path}, {1 + is_upgraded} session(s); OpenCode 2 is read from its public description, not yet tried on it"
    )


def test_a_schema_of_opencode_2_that_is_not_known_is_a_problem(station: Station) -> None:
    path = store_file(station.environ)
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table session_v2 (id text primary key, directory text not null, title text)")
    found = findings(station, code=1)
    assert bad(found) == [("OpenCode's store", "problem")]
    for command in ("verify", "doctor"):
        done = typed(station, command)
        assert done.returncode == 1, command
        assert "no store of OpenCode 2 as far as that is known" in done.stdout + done.stderr


def test_neither_key_nor_transcript_is_printed(station: Station) -> None:
    kill_and_drop(station)
    done = typed(station, "doctor")
    assert station.key not in done.stdout + done.stderr


def place(**plugin: object) -> str:
    return json.dumps({"plugin": [["./opencode-helicone.js", plugin]]}, indent=1)


FAULTS = {
    "a block under an unknown name": (
        json.dumps({"plugins": {"helicone-telemetry": {"redactPatterns": ["a"]}}}),
        "warning",
        "opencode.json: plugins.helicone-telemetry counts nowhere: OpenCode drops this block",
    ),
    "the predecessor is listed, too": (
        json.dumps({"plugin": ["opencode-helicone-async-telemetry@1"]}),
        "problem",
        "opencode.json: opencode-helicone-async-telemetry is listed, which sends every session, too",
    ),
    "a misspelt option": (
        place(redactPattern=["a"]),
        "problem",
        '"redactPattern" from {path} line 6: there is no such setting; did you mean redactPatterns?',
    ),
    "a pattern that RE2 refuses": (
        place(redactPatterns=["(?=a)"]),
        "problem",
        "redactPatterns from {path} line 6: redaction pattern 1 cannot be used",
    ),
    "no JSON": ('{\n "plugin": ["opencode-helicone"', "problem", "{path} line 2: it is not JSON"),
    "a limit that is none": (
        place(maxRetries="many"),
        "warning",
        "maxRetries from {path} line 6: it should be a valid integer (retries)",
    ),
    "rules that a file cannot switch off": (
        place(redactSecrets=False),
        "warning",
        "redactSecrets from {path} line 6: it can be switched on here, and off only by OPENCODE_HELICONE_",
    ),
    "an option of the predecessor's block": (
        json.dumps({"plugins": {"opencode-helicone-async-telemetry": {"redactPatern": ["a"]}}}),
        "problem",
        '"redactPatern" from {path} line 1: there is no such setting; did you mean redactPatterns?',
    ),
}


@pytest.mark.parametrize("where", [".", "config/opencode"], ids=["of the project", "of the user"])
@pytest.mark.parametrize(("written", "level", "found"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_in_opencodes_files_is_named_with_file_and_line(
    station: Station, written: str, level: str, found: str, where: str
) -> None:
    path = station.home / where / "opencode.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written)
    told = [one for one in findings(station, code=level == "problem") if one["level"] != "ok"]
    assert [(one["check"], one["level"]) for one in told][:1] == [("configuration", level)]
    assert found.format(path=path) in told[0]["found"]
    # `status` tells of it as well, as far as it is about options.
    if "OpenCode drops" not in found and "is listed" not in found:
        assert f"problem: {told[0]['found']}" in typed(station, "status", "-v").stdout


def test_a_folder_that_was_held_when_its_hook_saw_it_is_named_from_everywhere(station: Station) -> None:
    with station.ledger() as db:
        ours = destinations.destination(db, "", "", 1)
        folders.remember_folder(db, "one", ours.id, {"held": "opencode.json line 3: it is not JSON"}, 1)
        folders.remember_folder(db, "two", ours.id, {}, 1)
    (one,) = (one for one in findings(station, code=1) if one["level"] != "ok")
    assert (one["check"], one["level"]) == ("held", "problem")
    assert one["found"] == "1 folder(s), as seen last: opencode.json line 3: it is not JSON"


def test_the_predecessors_own_block_counts(station: Station) -> None:
    block = {"plugins": {"opencode-helicone-async-telemetry": {"redactPatterns": ["sk-x"], "enable": True}}}
    (station.home / "opencode.json").write_text(json.dumps(block))
    found = findings(station)
    assert bad(found) == []
    told = {one["check"]: one["found"] for one in found}
    assert told["configuration"] == "1 place(s) in OpenCode's files configure the plugin"
    assert told["redaction"] == "mode full, 1 pattern(s) of yours"


@pytest.mark.parametrize("place", ["environment", ".env of the user", ".env of the folder"])
def test_a_misspelt_variable_is_named_with_the_one_that_was_meant(station: Station, place: str) -> None:
    name = "OPENCODE_HELICONE_EXPROT_MODE"
    own = station.home / "config" / "opencode-helicone"
    own.mkdir(parents=True)
    if place == "environment":
        station = replace(station, variables={name: "off"})
    else:
        ((own if place == ".env of the user" else station.home) / ".env").write_text(f"{name}=off\n")
    (one,) = findings(station, code=1)
    assert (one["check"], one["level"]) == ("settings", "problem")
    assert one["found"].startswith(f"{name} from ")
    assert one["found"].endswith("did you mean OPENCODE_HELICONE_EXPORT_MODE?")


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


@pytest.mark.parametrize("content", [None, "rubbish"], ids=["nowhere", "rubbish"])
def test_send_with_certificates_that_cannot_be_used_says_so(station: Station, content: str | None) -> None:
    file = station.home / "certificates.pem"
    if content is not None:
        file.write_text(content)
    found = findings(replace(station, variables={"SSL_CERT_FILE": str(file)}), "--send", code=1)
    assert bad(found) == [("certificates", "problem"), ("send", "problem")]
    assert found[-1]["found"].startswith("not sent: SSL_CERT_FILE or SSL_CERT_DIR cannot be used: ")


def test_send_without_a_key_sends_nothing(station: Station) -> None:
    found = findings(replace(station, variables={"HELICONE_API_KEY": ""}), "--send", code=1)
    assert bad(found) == [("key", "problem"), ("send", "problem")]


def told_of_environment(station: Station, *, of_hook: Station) -> list[tuple[str, str]]:
    """What doctor says beside a live hook that was started in another environment."""
    with hook(of_hook) as process:
        process.notice("ses_nowhere", "busy")
        process.wait_for_ack()
        found = [one for one in findings(station) if one["check"] == "environment"]
        written = "".join(path.read_text() for path in (station.spool / "hooks").iterdir())
        assert station.key not in written
        assert "redact-this" not in written
        process.end()
    return [(one["found"], one["todo"]) for one in found]


@pytest.mark.slow
def test_a_variable_that_opencode_was_started_without_is_named(station: Station) -> None:
    service = replace(station, variables={"HELICONE_API_KEY": "", "XDG_CONFIG_HOME": str(station.home / "elsewhere")})
    here = replace(station, variables={"OPENCODE_HELICONE_REDACT_PATTERNS": '["redact-this"]'})
    told = told_of_environment(here, of_hook=service)
    assert [found for found, _ in told] == [
        "HELICONE_API_KEY is set here, and not where OpenCode was started",
        "OPENCODE_HELICONE_REDACT_PATTERNS is set here, and not where OpenCode was started",
        "XDG_CONFIG_HOME is not the same here as where OpenCode was started",
    ]
    assert all(str(station.home / "config" / "opencode-helicone" / ".env") in todo for _, todo in told[:2])
    assert "start OpenCode" in told[2][1]


@pytest.mark.slow
def test_a_variable_that_only_opencode_has_is_named(station: Station) -> None:
    service = replace(station, variables={"OPENCODE_DB": "other.db", "OPENCODE_HELICONE_EXPORT_MODE": "metadata_only"})
    assert [found for found, _ in told_of_environment(station, of_hook=service)] == [
        "OPENCODE_HELICONE_EXPORT_MODE is set where OpenCode was started, and not here",
        "OPENCODE_DB is set where OpenCode was started, and not here",
    ]


@pytest.mark.slow
def test_what_the_configuration_folder_says_counts_as_set_in_both_places(station: Station) -> None:
    own = station.home / "config" / "opencode-helicone"
    own.mkdir(parents=True)
    (own / ".env").write_text(f"HELICONE_API_KEY={station.key}\n")
    assert told_of_environment(station, of_hook=replace(station, variables={"HELICONE_API_KEY": ""})) == []
    (own / ".env").write_text("HELICONE_API_KEY=another\n")
    assert len(told_of_environment(station, of_hook=replace(station, variables={"HELICONE_API_KEY": ""}))) == 1


@pytest.mark.slow
def test_a_standard_folder_may_be_said_or_not(station: Station) -> None:
    said_so = {"XDG_DATA_HOME": str(station.home / ".local/share"), "XDG_CONFIG_HOME": str(station.home / ".config")}
    silent = replace(station, variables={"XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""})
    assert told_of_environment(silent, of_hook=replace(station, variables=said_so)) == []


def test_a_hook_of_an_older_version_says_nothing_of_its_environment(station: Station) -> None:
    older = Announced(Spool(station.spool).hooks)
    try:
        older.say({"destination": 1, "sessions": [], "backlog": 0})
        assert bad(findings(station)) == []
    finally:
        older.withdraw()


def test_a_store_in_opencodes_memory_is_a_problem(station: Station) -> None:
    found = findings(replace(station, variables={"OPENCODE_DB": ":memory:"}), code=1)
    assert bad(found) == [("OpenCode's store", "problem")]
    (told,) = (one for one in found if one["check"] == "OpenCode's store")
    assert told["found"] == "OpenCode keeps its sessions in memory (OPENCODE_DB=:memory:), where nobody can read them"
    assert "OPENCODE_DB" in told["todo"]


def test_the_store_that_is_there_is_the_one_that_is_named(station: Station) -> None:
    data = store_file(station.environ).parent
    json_store.put(data, export("a_simple"))
    (told,) = (one["found"] for one in findings(station) if one["check"] == "OpenCode's store")
    assert told == f"{data / 'storage'}, 1 session(s)"
    built(data / "opencode-dev.db", export("a_simple"))
    (told,) = (one["found"] for one in findings(station) if one["check"] == "OpenCode's store")
    assert told == f"{data / 'opencode-dev.db'}, 1 session(s)"


def test_a_long_turn_that_an_opencode_is_at_is_no_fault(station: Station) -> None:
    leave_a_session_that_nobody_reads(station)
    owner = Announced(Spool(station.spool).hooks)
    try:
        owner.say({"sessions": ["ses_1"]})
        assert bad(findings(station)) == []
    finally:
        owner.withdraw()

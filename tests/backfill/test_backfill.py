"""`backfill`, as a person and a script meet it: OpenCode's store in real files, a real ledger."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.backfill import backfill
from app.capture.config import capture
from app.capture.export import split
from app.capture.targets import folder, target
from app.cli.options import STOPPED
from app.ledger import job as ledger_job
from app.ledger.destinations import destination, destinations
from app.ledger.folders import remember_folder
from app.privacy.policy import Mode
from app.runtime import clock
from app.runtime.liveness import Announced
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.sources.opencode.store import Store, store_file
from app.transcript.identity import Identity
from app.transcript.parse import parse
from tests.sources.opencode.test_store import built
from tests.stress import backfill as violence
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import PROJECT, Station, repository
from tests.support.recorded import export, exported
from tests.support.snapshots import Fields, assistant, entry, snapshot, text, unfinished, user
from tests.support.stores import put
from tests.support.typed_commands import Interrupted, typed
from tests.system.test_cli import complaint, example, said, shape

EVER = ("--since", "2000-01-01")
DAY_MS = 24 * 3_600_000
BEGAN_MS = 1_500_000_000_000
CAPTURE = capture(Settings(), ())


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    (home / "data" / "opencode").mkdir(parents=True)
    return Station(home, "http://127.0.0.1:9")


def stored(station: Station, *snapshots: Fields) -> Path:
    """OpenCode's store, where OpenCode has it."""
    return built(station.home / "data" / "opencode" / "opencode.db", *snapshots)


def small(name: str = "ses_1", directory: str = PROJECT, created_ms: int = BEGAN_MS, *more: Fields) -> Fields:
    """A session with one turn, and whatever comes after it."""
    messages = (
        user(f"msg_{name}a", created_ms + 10, text("hello", f"prt_{name}a")),
        assistant(f"msg_{name}b", created_ms + 20, text("good day", f"prt_{name}b"), parent=f"msg_{name}a"),
    )
    times = {"created": created_ms, "updated": created_ms + 1_000}
    return snapshot(entry(*messages, *more, name=name, directory=directory, time=times))


def jobs(station: Station) -> list[dict[str, Any]]:
    with station.ledger() as db:
        rows = db.execute(
            "select j.*, s.name as session, t.name as turn, p.facts from job j join turn t on t.id = j.turn_id"
            " join session s on s.id = j.session_id left join policy p on p.id = j.policy_id"
            " where j.state <> 'superseded' order by j.id"
        )
        return [dict(row) for row in rows]


# --- what there is to do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "metadata_only"])
@pytest.mark.parametrize("name", exported())
def test_logs_are_counted_as_they_are_encoded(name: str, mode: Mode) -> None:
    capturing = capture(Settings(export_mode=mode), ())
    found, _ = split(parse(export(name)), capturing, Identity(""), abandoned=True)
    assert found
    assert [one.record_count for one in found] == [len(list(one.encode())) for one in found]


def test_a_dry_run_says_what_would_be_sent_and_makes_nothing(station: Station) -> None:
    names = ("b_tools", "f_subagent", "a_simple")
    store = stored(station, *map(export, names))
    before = store.read_bytes()
    told = said(typed(station, "backfill", "--dry-run", "--json", *EVER))
    assert shape(told) == shape({**example("backfill"), "unreadable": [], "queued": None})
    counted = [one for name in names for one in split(parse(export(name)), CAPTURE, Identity(""), abandoned=True)[0]]
    assert (told["logs"], told["sessions"]) == (sum(len(list(one.encode())) for one in counted), 3)
    assert told["turns"] == len(counted) - 3
    assert not station.spool.exists()
    assert store.read_bytes() == before


def test_a_dry_run_tells_new_turns_from_those_that_a_new_pattern_makes_anew(station: Station) -> None:
    store = store_file(station.environ)
    put(store, small())
    assert typed(station, "backfill", *EVER).returncode == 0
    assert said(typed(station, "backfill", "--dry-run", "--json", *EVER))["turns"] == 0
    put(store, small("ses_2"))
    stricter = ("backfill", "--dry-run", "--set", 'redactPatterns=["hello"]', *EVER)
    told = said(typed(station, *stricter, "--json"))
    assert (told["turns"], told["replaced"]) == (2, 1)
    assert "in 2 turns of 2 sessions: 1 new, 1 known and made anew" in typed(station, *stricter).stdout


def test_a_login_that_comes_after_the_plan_is_masked_in_what_is_queued(station: Station) -> None:
    store = Store(stored(station, small()))
    with backfill.opened(station.spool, dry_run=False) as db:
        sources = Sources(station.environ, station.home, station.home)
        ours = target(db, sources.load(), BEGAN_MS)
        history = backfill.Backfill(db, sources, ours, store, backfill.Choice(since_ms=0))
        plan = history.plan(clock.now_ms())
        login = json.dumps({"provider": {"type": "api", "key": "good day"}})
        (station.home / "data" / "opencode" / "auth.json").write_text(login)
        queued = backfill.Queued()
        history.queue(ours, plan.sessions, queued, lambda *_: None, lambda: None)
        kept = [one.body for job in jobs(station) for one in ledger_job.bodies(db, job["id"], job["key"])]
    assert queued.new == 2
    assert any(b"[REDACTED]" in body for body in kept)
    assert not any(b"good day" in body for body in kept)


def test_a_dry_run_marks_folders_that_are_gone(station: Station) -> None:
    stored(station, small(), small("ses_2", str(station.home)), small("ses_3", ""))
    told = said(typed(station, "backfill", "--dry-run", "--json", *EVER))
    gone = {one["directory"]: one["is_gone"] for one in told["projects"]}
    assert gone == {PROJECT: True, str(station.home): False, "": False}
    lines = typed(station, "backfill", "--dry-run", *EVER).stdout
    assert f"  {PROJECT} (not there any more): " in lines
    assert f"  {station.home}: " in lines
    assert "  (no folder): " in lines


def test_all_is_queued_once_oldest_first_as_history_and_nobody_is_rung(station: Station) -> None:
    stored(station, small("ses_new", created_ms=BEGAN_MS + 9), small("ses_old"))
    first = typed(station, "backfill", *EVER)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [
        "6 logs in 2 turns of 2 sessions",
        f"  {PROJECT} (not there any more): 6 logs in 2 turns of 2 sessions",
        "4 jobs queued; 4 jobs wait",
        "no worker runs: opencode-helicone flush delivers now",
    ]
    made = jobs(station)
    assert [one["session"] for one in made] == ["ses_old", "ses_old", "ses_new", "ses_new"]
    assert {(one["state"], one["is_history"]) for one in made} == {("pending", 1)}
    assert not (station.spool / "queue.db").exists()
    again = said(typed(station, "backfill", "--json", *EVER))
    assert (again["logs"], again["queued"]["new"], again["waiting"]) == (0, 0, 4)
    assert shape(again) == shape({**example("backfill"), "projects": [], "unreadable": []}) | {
        "projects": shape(again["projects"])
    }
    assert jobs(station) == made


@pytest.mark.parametrize("command", ["backfill", "import"])
def test_the_disk_is_waited_for_once_a_session(station: Station, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = [small("ses_1"), small("ses_2")]
    files = []
    if command == "backfill":
        stored(station, *sessions)
    else:
        for session in sessions:
            files.append(str(station.home / f"{session['root']}.json"))
            Path(files[-1]).write_text(json.dumps(session["sessions"][0]))
    waited: list[int] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        waited.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    assert typed(station, command, *(files or EVER)).returncode == 0
    assert len(jobs(station)) == 4
    assert len(waited) == len(sessions)


def test_without_a_key_nobody_is_told_to_flush(station: Station) -> None:
    stored(station, small())
    told = typed(replace(station, key=""), "backfill", *EVER)
    assert told.stdout.splitlines()[-1] == "nothing is delivered without a key: set HELICONE_API_KEY"


def test_more_logs_than_wanted_are_not_sent_unasked(station: Station) -> None:
    stored(station, small())
    refused = typed(station, "backfill", "--max-logs", "2", *EVER)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "opencode-helicone: this would send 3 logs, more than --max-logs 2: say --max-logs 3"
    ]
    assert jobs(station) == []
    assert typed(station, "backfill", "--max-logs", "3", *EVER).returncode == 0
    assert len(jobs(station)) == 2


@pytest.mark.parametrize(("answered", "made", "code"), [("y\n", 2, 0), ("n\n", 0, 1), ("\n", 0, 1)])
def test_a_person_at_a_terminal_is_asked(station: Station, answered: str, made: int, code: int) -> None:
    stored(station, small())
    outer, inner = pty.openpty()
    os.write(outer, answered.encode())
    with os.fdopen(inner) as terminal:
        done = typed(station, "backfill", "--max-logs", "2", *EVER, stdin=terminal)
    os.close(outer)
    assert "send 3 logs, more than --max-logs 2? [y/N]" in done.stderr
    assert (done.returncode, len(jobs(station))) == (code, made)


def test_ctrl_c_at_the_question_ends_with_130_and_queues_nothing(station: Station) -> None:
    stored(station, small())
    done = typed(station, "backfill", "--max-logs", "2", *EVER, stdin=Interrupted())
    assert (done.returncode, jobs(station)) == (STOPPED, [])


def test_what_helicone_would_blank_is_left_out_unless_somebody_asks(station: Station) -> None:
    stored(station, small("ses_old"), small("ses_older", created_ms=BEGAN_MS - 9))
    with closing(sqlite3.connect(station.home / "data" / "opencode" / "opencode.db")) as db, db:
        recent_ms = db.execute("select unixepoch() * 1000").fetchone()[0] - 89 * DAY_MS
        db.execute("update part set time_updated = ? where session_id = 'ses_old'", (recent_ms,))
    told = typed(station, "backfill", "--dry-run")
    assert "3 logs in 1 turn of 1 session\n" in told.stdout
    assert "1 session left out, not changed for 90 days" in told.stdout
    assert said(typed(station, "backfill", "--dry-run", "--json", "--since", "91d"))["sessions"] == 1
    assert said(typed(station, "backfill", "--dry-run", "--json", "--since", "88d"))["sessions"] == 0
    assert said(typed(station, "backfill", "--dry-run", "--json", *EVER))["sessions"] == 2
    named = said(typed(station, "backfill", "--json", "--session", "ses_older"))
    assert (named["sessions"], {one["session"] for one in jobs(station)}) == (1, {"ses_older"})


def test_a_session_that_is_not_there_is_named(station: Station) -> None:
    stored(station, small())
    assert "no session ses_2 " in complaint(typed(station, "backfill", "--session", "ses_2"), 1)


def test_a_project_is_chosen_by_its_folder(station: Station) -> None:
    here = station.home / "project"
    here.mkdir()
    stored(station, small("ses_1"), small("ses_2", str(here)))
    assert typed(station, "backfill", "--project", "project", *EVER).returncode == 0
    assert {one["session"] for one in jobs(station)} == {"ses_2"}


def test_a_project_without_a_session_is_named(station: Station) -> None:
    stored(station, small())
    told = complaint(typed(station, "backfill", "--project", "./nothing", *EVER), 1)
    assert f"started in {station.home / 'nothing'}" in told


def test_a_session_that_cannot_be_read_keeps_no_other_from_going(station: Station) -> None:
    path = stored(station, small("ses_1"), small("ses_2"))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("""update message set data = '{"role": "oddity"}' where id = 'msg_ses_1a'""")
    told = typed(station, "backfill", *EVER)
    assert told.returncode == 1
    assert "  ses_1: cannot be read: 1 message(s): sessions[0].messages[0].info.role: " in told.stdout
    assert {one["session"] for one in jobs(station)} == {"ses_2"}


# --- how it is captured ----------------------------------------------------------------------------------------------

PLUGIN = json.dumps({"plugin": [["./opencode-helicone.js", {"redactPattern": ["hello"]}]]})


CONFIGURED = json.dumps({"plugin": [["./opencode-helicone.js", {"redactPatterns": ["hello"]}]]})


@pytest.mark.parametrize(
    "name",
    [
        "opencode.json",
        "opencode.jsonc",
        ".opencode/opencode.json",
        "../opencode.json",
        "../../config/opencode/opencode.json",
    ],
)
def test_the_options_in_a_folders_files_count_and_files_that_cannot_be_read_leave_it_out(
    station: Station, name: str
) -> None:
    project = station.home / "repository" / "project"
    path = project / name
    for one in (project, path.parent):
        one.mkdir(parents=True, exist_ok=True)
    path.write_text(CONFIGURED.replace("redactPatterns", "redactPattern"))
    stored(station, small(directory=str(project)))
    refused = typed(station, "backfill", *EVER)
    assert refused.returncode == 1
    (line,) = [line for line in refused.stdout.splitlines() if "left out" in line]
    assert f"{project}: 1 session left out: held until the configuration is right: " in line
    assert "did you mean redactPatterns?" in line
    assert jobs(station) == []
    path.write_text(CONFIGURED)
    assert typed(station, "backfill", *EVER).returncode == 0
    assert [len(json.loads(one["facts"])["patterns"]) for one in jobs(station)] == [1, 1]


def seen(station: Station, directory: str, options: dict[str, object]) -> None:
    """A hook has recorded a folder's options."""
    with station.ledger() as db:
        ours = destination(db, "", "", 0)
        remember_folder(db, folder(db, directory), ours.id, options, 0)


def test_a_configuration_that_does_not_name_the_plugin_refuses_nothing(station: Station) -> None:
    project = station.home / "project"
    repository(project)
    (project / "opencode.json").write_text('{"model": "fake/large"}')
    (station.home / "opencode.json").write_text(PLUGIN)  # above the repository
    stored(station, small(directory=str(project)))
    assert typed(station, "backfill", *EVER).returncode == 0
    assert len(jobs(station)) == 2


def test_what_was_recorded_for_a_folder_and_what_the_command_says_count_both(station: Station) -> None:
    here = replace(station, variables={"OPENCODE_HELICONE_REDACT_PATTERNS": '["day"]'})
    stored(station, small())
    seen(here, PROJECT, {"redactPatterns": ["hello"]})
    assert typed(here, "backfill", *EVER).returncode == 0
    (facts,) = {one["facts"] for one in jobs(here)}
    assert len(json.loads(facts)["patterns"]) == 2


def config_file(station: Station, text: str) -> None:
    path = station.home / "config" / "opencode-helicone" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({}, ("--export-mode", "full", "--set", "redactSecrets=false")),
        ({"OPENCODE_HELICONE_EXPORT_MODE": "full", "OPENCODE_HELICONE_REDACT_SECRETS": "false"}, ()),
    ],
)
@pytest.mark.parametrize(("written", "mode"), [("", "full"), ('exportMode = "metadata_only"', "metadata_only")])
def test_defaults_and_a_config_file_that_a_hook_saw_are_not_loosened_either(
    station: Station, variables: dict[str, str], arguments: tuple[str, ...], written: str, mode: str
) -> None:
    here = replace(station, variables=variables)
    stored(station, small())
    config_file(station, written)
    seen(station, PROJECT, {"redactSecrets": True})
    assert typed(here, "backfill", *arguments, *EVER).returncode == 0
    (facts,) = {one["facts"] for one in jobs(here)}
    assert (json.loads(facts)["mode"], json.loads(facts)["redact_secrets"]) == (mode, True)


@pytest.mark.parametrize("variable", ["OPENCODE_CONFIG", "OPENCODE_CONFIG_CONTENT"])
def test_a_variable_that_configures_the_plugin_counts(station: Station, variable: str) -> None:
    path = station.home / "other.json"
    path.write_text(CONFIGURED)
    here = replace(station, variables={variable: str(path) if variable == "OPENCODE_CONFIG" else CONFIGURED})
    stored(station, small())
    assert typed(here, "backfill", *EVER).returncode == 0
    assert [len(json.loads(one["facts"])["patterns"]) for one in jobs(station)] == [1, 1]


def test_a_new_pattern_brings_again_what_was_queued_whole(station: Station) -> None:
    stored(station, small())
    typed(station, "backfill", *EVER)
    before = {one["key"] for one in jobs(station)}
    stricter = replace(station, variables={"OPENCODE_HELICONE_REDACT_PATTERNS": '["day"]'})
    assert said(typed(stricter, "backfill", "--json", *EVER))["queued"]["new"] == 2
    assert before.isdisjoint({one["key"] for one in jobs(station)})


@pytest.mark.parametrize(
    ("options", "reason"), [({"enable": False}, "enable is false"), ({"exportMode": "off"}, "export mode is off")]
)
def test_a_folder_that_is_switched_off_is_named_and_not_sent(
    station: Station, options: dict[str, object], reason: str
) -> None:
    stored(station, small("ses_1"), small("ses_2", "/home/dev/other"))
    seen(station, PROJECT, options)
    told = typed(station, "backfill", *EVER)
    assert told.returncode == 0
    assert f"  {PROJECT} (not there any more): 1 session left out: {reason} (OpenCode's hook, last seen" in told.stdout
    assert {one["session"] for one in jobs(station)} == {"ses_2"}


def test_a_turn_that_an_opencode_is_at_is_left_to_it(station: Station) -> None:
    more = (user("msg_c", BEGAN_MS + 200, text("more", "prt_c")), unfinished("msg_d", BEGAN_MS + 300, parent="msg_c"))
    stored(station, small("ses_1", PROJECT, BEGAN_MS, *more))
    opencode = Announced(Spool(station.spool).hooks)
    opencode.say({"sessions": ["ses_1"]})
    told = said(typed(station, "backfill", "--json", *EVER))
    assert (told["queued"]["new"], told["queued"]["unfinished"]) == (2, 1)
    opencode.withdraw()
    assert said(typed(station, "backfill", "--json", *EVER))["queued"]["new"] == 1
    assert [one["turn"] for one in jobs(station)] == ["session", "msg_ses_1a", "msg_c"]


# --- what is taken back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "options", "is_taken"),
    [
        ("age", (), True),
        ("size", (), True),
        ("off", (), False),
        ("off", ("--include-off",), True),
        ("deleted", ("--include-off",), False),
        ("purged", ("--include-off",), False),
        ("body_not_stored", (), False),
        ("body_not_stored", ("--body-not-stored",), True),
    ],
)
def test_what_was_dropped_is_taken_back_where_nobody_decided_that_or_somebody_asks(
    station: Station, reason: str, options: tuple[str, ...], *, is_taken: bool
) -> None:
    stored(station, small())
    typed(station, "backfill", *EVER)
    state = ("delivered", None, 1) if reason == "body_not_stored" else ("dropped", reason, 0)
    with station.ledger() as db:
        db.execute(
            "update job set state = ?, drop_reason = ?, body_not_stored = ?, due_ms = null, finished_ms = 1,"
            " body_bytes = 0",
            state,
        )
    planned = said(typed(station, "backfill", "--dry-run", "--json", *options, *EVER))
    assert typed(station, "backfill", *options, *EVER).returncode == 0
    assert ({one["state"] for one in jobs(station)} == {"pending"}) is is_taken
    assert (planned["logs"] > 0) is is_taken


def test_a_turn_that_came_while_export_was_off_is_counted_and_taken_when_asked(station: Station) -> None:
    path = stored(station, small())
    off = replace(station, variables={"OPENCODE_HELICONE_EXPORT_MODE": "off"})
    session = json.loads(json.dumps(small()["sessions"][0]))
    (station.home / "session.json").write_text(json.dumps(session))
    assert typed(off, "import", "session.json").returncode == 0
    told = typed(station, "backfill", "--db", str(path), *EVER)
    assert "2 turns not taken: captured while export was off (--include-off takes them)" in told.stdout
    assert {one["state"] for one in jobs(station)} == {"dropped"}
    typed(station, "backfill", "--include-off", *EVER)
    assert {one["state"] for one in jobs(station)} == {"pending"}


def test_a_session_that_is_named_is_read_again_whatever_its_times_say(station: Station) -> None:
    path = stored(station, small())
    typed(station, "backfill", *EVER)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update part set data = replace(data, 'good day', 'good night')")
    assert said(typed(station, "backfill", "--json", *EVER))["queued"]["new"] == 0
    assert said(typed(station, "backfill", "--json", "--session", "ses_1"))["queued"]["new"] == 1


def test_a_turn_that_was_cut_off_goes_also_where_its_time_is_in_the_future(station: Station) -> None:
    more = (user("msg_c", BEGAN_MS + 200, text("more", "prt_c")), unfinished("msg_d", BEGAN_MS + 300, parent="msg_c"))
    path = stored(station, small("ses_1", PROJECT, BEGAN_MS, *more))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update part set time_updated = ?", (clock.now_ms() + DAY_MS,))
    typed(station, "backfill", *EVER)
    assert "msg_c" in {one["turn"] for one in jobs(station)}


# --- room ------------------------------------------------------------------------------------------------------------


def test_it_stops_at_half_of_the_spool_drops_nothing_and_goes_on_the_next_time(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "WORKER_S", 0.0)
    stored(station, *(small(f"ses_{number}", created_ms=BEGAN_MS + number) for number in range(8)))
    arguments = ("backfill", "--set", "maxSpoolSize=4000", *EVER)
    for _ in range(16):
        done = typed(station, *arguments)
        if done.returncode == 0:
            break
        assert done.returncode == 1
        assert done.stderr.endswith(  # on a slow machine how far it has come stands before it
            "opencode-helicone: half of maxSpoolSize is in use, and no worker runs: let flush or worker deliver it;"
            " what is queued stays; the same backfill again goes on from there\n"
        )
        held = sum(one["body_bytes"] for one in jobs(station))
        assert 2_000 <= held < 4_000
        with station.ledger() as db:
            db.execute("update job set state = 'delivered', due_ms = null, finished_ms = 1, body_bytes = 0")
    assert done.returncode == 0
    made = jobs(station)
    assert len(made) == 16
    assert "dropped" not in {one["state"] for one in made}


def test_dead_letters_that_take_the_room_are_named(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "WORKER_S", 0.0)
    stored(station, small("ses_1"), small("ses_2"))
    typed(station, "backfill", "--session", "ses_1")
    with station.ledger() as db:
        db.execute("update job set state = 'dead', due_ms = null, finished_ms = 1")
    done = typed(station, "backfill", "--set", "maxSpoolSize=1000", *EVER)
    assert done.returncode == 1
    assert "by dead letters or for another destination" in done.stderr


def test_the_room_is_looked_at_again_when_what_was_left_is_used_up(
    db: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "WORKER_S", 0.0)
    bench = LedgerBench(db)
    (ours,) = destinations(db)
    admission = backfill.Admission(db, Spool(tmp_path), ours, 4_000, lambda: None)
    admission.admit(1_500)
    bench.put(version())
    db.execute("update job set body_bytes = 2000")  # all of the half
    admission.admit(500)
    with pytest.raises(backfill.NoRoomError):
        admission.admit(1)


def test_a_worker_that_has_nothing_to_deliver_makes_no_room(
    db: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "WORKER_S", 0.0)
    bench = LedgerBench(db)
    (ours,) = destinations(db)
    bench.put(version())
    db.execute("update job set body_bytes = 2000, state = 'dead', due_ms = null, finished_ms = 1")
    worker = Announced(Spool(tmp_path).workers)
    worker.say({"destination": ours.id})

    def waited() -> None:
        raise AssertionError("it would wait for ever")

    try:
        with pytest.raises(backfill.NoRoomError, match="dead letters"):
            backfill.Admission(db, Spool(tmp_path), ours, 4_000, on_wait=waited).admit(1)
    finally:
        worker.withdraw()


@pytest.mark.slow
def test_killed_again_and_again_beside_a_worker_and_a_hook_it_brings_every_turn_once() -> None:
    told = violence.run(violence.Plan(turns=120, kills=3, live=1, seed=3), lambda _: None)
    assert told.problems == []

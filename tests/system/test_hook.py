"""The hook as a process: lines on its standard input, jobs in a real ledger."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.capture.daemon import NOTHING_WANTED, Daemon
from app.capture.pipe_reader import LINE_BYTES_MAX, LINE_COST_BYTES, QUEUE_BYTES_MAX, PipeReader
from app.database.open import open_ledger
from app.ledger import counts, destinations, folders, incidents, job, notices
from app.runtime.liveness import present
from app.settings.lookup import unattended
from tests.support.processes import PROJECT, Station, hook
from tests.support.recorded import EMAILS, SECRETS, export
from tests.support.servers import api_key
from tests.support.waiting import wait_until

NOWHERE = "http://127.0.0.1:9"
SIMPLE = "a_simple"
JOBS = 2


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, NOWHERE)


def told(station: Station, message: str) -> int:
    """How often the hook's log says so, repeats included."""
    lines = [line for line in station.text("hook.log").splitlines() if message in line]
    return sum(int(found[1]) if (found := re.search(r"\(repeated (\d+) times\)$", line)) else 1 for line in lines)


def refusals(station: Station) -> dict[str, int]:
    with station.ledger() as db:
        return {reason: count for reason, count, _ in incidents.refusals(db)}


def test_what_was_refused_may_hold_anything(station: Station) -> None:
    with hook(station) as process:
        process.show(export("a_simple"))
        reasons: list[object] = [[], {}, None, 1, "too large", "too long"]
        for reason in reasons:
            process.say("refused", session="", reason=reason)
        assert process.end() == 0
    assert refusals(station) == {"unknown": 5, "too long": 1}


def test_a_turn_that_was_too_long_for_an_older_plugin_is_read(station: Station) -> None:
    with hook(station) as process:
        session = process.store.put(export(SIMPLE))
        process.say("refused", session=session, reason="too large")
        wait_until(lambda: station.counts().pending == JOBS)
        process.end()
    assert refusals(station) == {}


def test_a_session_becomes_jobs_and_the_same_one_again_becomes_none(station: Station) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE))
        process.show(export(SIMPLE))
        assert process.end() == 0
    assert station.counts().pending == JOBS


def test_each_line_is_acknowledged_when_its_session_is_in_the_ledger(station: Station) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE))
        process.wait_for_ack()
        assert station.counts().pending == JOBS
        with station.ledger() as db:
            assert notices.unread(db) == []
        process.notice("ses_nowhere", "busy")
        process.wait_for_ack()
        with station.ledger() as db:
            assert [one.sessions for one in notices.unread(db)] == [1]
        process.say("notice", v=2, n=process.said + 1, session="", why="bored")  # refused and counted
        process.said += 1
        process.show(export("b_tools"))
        process.wait_for_ack()
        assert process.end() == 0
    assert station.counts().pending == 2 * JOBS


def test_a_plugin_that_reads_no_acknowledgement_costs_nothing(station: Station) -> None:
    with hook(station) as process:
        assert process.process.stdout is not None
        process.process.stdout.close()
        process.show(export(SIMPLE))
        process.show(export("b_tools"))
        assert process.end() == 0
    assert station.counts().pending == 2 * JOBS


RUBBISH = {
    "no JSON": b"{",
    "no object": b"[1]",
    "empty": b"",
    "no UTF-8": b"\xff\xfe",
    "unknown version": b'{"v":3,"type":"notice"}',
    "no type": b'{"v":1}',
    "unknown type": b'{"v":1,"type":"party","directory":"/p","session":"ses_1"}',
    "no root": b'{"v":1,"type":"snapshot","directory":"/p"}',
    "NaN": b'{"v":1,"type":"open","session":NaN}',
    "deep": b'{"v":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "options no object": b'{"v":1,"type":"open","directory":"/p","session":"ses_1","options":3}',
    "no session": b'{"v":2,"n":1,"type":"notice","why":"idle","directory":"/p"}',
    "unknown reason": b'{"v":2,"n":1,"type":"notice","why":"bored","directory":"/p","session":"ses_1"}',
}


def test_every_line_that_cannot_be_used_is_counted_and_costs_nothing_else(station: Station) -> None:
    with hook(station) as process:
        process.say("open", session="ses_1")
        for line in RUBBISH.values():
            process.raw(line)
        process.show(export(SIMPLE))
        assert process.end() == 0
    assert sum(refusals(station).values()) == len(RUBBISH)
    assert told(station, "refused a line") == len(RUBBISH)
    assert station.counts().pending == JOBS


def test_rubbish_before_the_first_good_line_is_survived(station: Station) -> None:
    with hook(station) as process:
        for line in RUBBISH.values():
            process.raw(line)
        process.show(export(SIMPLE))
        assert process.end() == 0
    assert station.counts().pending == JOBS


@pytest.mark.parametrize("text", ["\ud800 alone", "nul \u0000 inside", "line\u2028separator", "\r carriage"], ids=ascii)
def test_odd_characters_survive(station: Station, text: str) -> None:
    snapshot = export(SIMPLE)
    snapshot["sessions"][0]["messages"][0]["parts"][0]["text"] = text
    with hook(station) as process:
        process.show(snapshot)
        assert process.end() == 0
    assert refusals(station) == {}
    assert station.counts().pending == JOBS


def test_a_line_of_50_mb_is_taken_and_a_longer_one_than_allowed_is_refused(station: Station) -> None:
    snapshot = export(SIMPLE)
    snapshot["sessions"][0]["messages"][0]["parts"][0]["text"] = "word " * 10_000_000
    with hook(station) as process:
        process.show(snapshot)
        process.raw(b'{"v":1,"x":"' + b"x" * LINE_BYTES_MAX + b'"}')
        process.show(export("b_tools"))
        assert process.end() == 0
    assert refusals(station) == {"too long": 1}
    assert station.counts().pending == 2 * JOBS


def test_a_line_that_opencode_died_in_is_counted(station: Station) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE))
        assert process.process.stdin is not None
        process.process.stdin.write(b'{"v":1,"type":"snap')
        assert process.end() == 0
    assert refusals(station) == {"cut off": 1}


def test_short_lines_without_end_are_held_back_too() -> None:
    reader, writer = os.pipe()
    lines = 2 * QUEUE_BYTES_MAX // LINE_COST_BYTES
    pipe_reader = PipeReader(reader)
    feeding = threading.Thread(target=os.write, args=(writer, b"\n" * lines))
    feeding.start()
    wait_until(lambda: len(pipe_reader) == lines // 2)
    waiting = [len(pipe_reader) for _ in range(lines) if pipe_reader.next(20) == b""]
    feeding.join(20)
    assert (len(waiting), len(pipe_reader)) == (lines, 0)
    assert max(waiting) <= lines // 2
    os.close(writer)
    wait_until(lambda: pipe_reader.ended)
    os.close(reader)


def test_the_signals_of_the_terminal_do_not_end_it(station: Station) -> None:
    with hook(station) as process:
        process.say("open", session="ses_1")
        wait_until(lambda: present(station.spool / "hooks"))
        process.process.send_signal(signal.SIGHUP)
        process.process.send_signal(signal.SIGINT)
        process.show(export(SIMPLE))
        assert process.end() == 0
    assert station.counts().pending == JOBS


def test_it_says_which_sessions_it_owns_while_it_lives(station: Station) -> None:
    with hook(station) as process:
        process.say("open", session="ses_1")
        process.say("open", session="ses_2")
        wait_until(
            lambda: [one.says.get("sessions") for one in present(station.spool / "hooks")] == [["ses_1", "ses_2"]]
        )
        process.end()
    assert present(station.spool / "hooks") == []


def unfinished(name: str) -> dict[str, Any]:
    """The recording with its last answer still being written."""
    snapshot = export(name)
    info = snapshot["sessions"][0]["messages"][-1]["info"]
    del info["time"]["completed"]
    info.pop("finish", None)
    return snapshot


def turns_and_states(station: Station) -> list[tuple[str, str]]:
    with station.ledger() as db:
        rows = db.execute("select t.name, j.state from job j join turn t on t.id = j.turn_id order by j.id").fetchall()
    return [(row["name"], row["state"]) for row in rows if row["name"] != job.SESSION_RECORD]


def test_an_unfinished_turn_waits_for_the_notice_of_its_end(station: Station) -> None:
    with hook(station) as process:
        process.show(unfinished(SIMPLE))
        process.wait_for_ack()
        assert turns_and_states(station) == []
        process.show(export(SIMPLE))
        process.wait_for_ack()
        assert [state for _, state in turns_and_states(station)] == ["pending"]
        process.end()


def test_a_sessions_own_record_goes_with_its_first_turn_and_by_the_name_that_it_has_then(station: Station) -> None:
    named, unnamed = export(SIMPLE), unfinished(SIMPLE)
    unnamed["sessions"][0]["info"]["title"] = "New session - 2026-11-22T10:36:10.437Z"
    with hook(station) as process:
        process.show(unnamed, why="busy")
        process.wait_for_ack()
        with station.ledger() as db:
            assert db.execute("select count(*) from job").fetchone()[0] == 0
        process.show(named)
        process.wait_for_ack()
        with station.ledger() as db:
            assert [row[0] for row in db.execute("select state from job")] == ["pending"] * JOBS
        process.end()


def test_a_turn_that_ends_a_moment_after_its_notice_is_taken_without_another_one(station: Station) -> None:
    with hook(station) as process:
        process.show(unfinished(SIMPLE))
        process.wait_for_ack()
        process.store.put(export(SIMPLE))
        wait_until(lambda: turns_and_states(station))
        process.end()


def test_an_unfinished_turn_is_exported_as_interrupted_when_the_next_question_comes(station: Station) -> None:
    both = export("c_second_prompt")
    messages = both["sessions"][0]["messages"]
    first = {**both, "sessions": [{**both["sessions"][0], "messages": messages[:2]}]}
    del first["sessions"][0]["messages"][1]["info"]["time"]["completed"]
    second = {**both, "sessions": [{**both["sessions"][0], "messages": messages[2:]}]}
    with hook(station) as process:
        process.show(first)
        process.wait_for_ack()
        process.show(second)
        process.wait_for_ack()
        assert len(turns_and_states(station)) == 2
        process.end()


def test_an_unfinished_turn_is_exported_as_interrupted_when_opencode_has_ended(station: Station) -> None:
    with hook(station) as process:
        process.show(unfinished(SIMPLE))
        process.end()
    assert [state for _, state in turns_and_states(station)] == ["pending"]


def test_an_unfinished_turn_is_left_to_another_opencode_that_has_the_session_open(station: Station) -> None:
    with hook(station) as other, hook(station) as process:
        other.say("open", session=export(SIMPLE)["root"])
        wait_until(lambda: "ses_" in str([one.says for one in present(station.spool / "hooks")]))
        process.show(unfinished(SIMPLE))
        process.end()
        assert turns_and_states(station) == []


def test_undelivered_jobs_of_a_deleted_session_are_dropped(station: Station) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE))
        process.wait_for_ack()
        process.delete(export(SIMPLE)["root"])
        process.show(export(SIMPLE))
        process.end()
    counts = station.counts()
    assert (counts.pending, counts.dropped_by_reason) == (0, {"deleted": JOBS})


def test_off_keeps_a_row_and_no_body_and_nothing_is_sent_later(station: Station) -> None:
    off = replace(station, variables={"OPENCODE_HELICONE_EXPORT_MODE": "off"})
    with hook(off) as process:
        process.show(export(SIMPLE))
        process.end()
    assert station.counts().dropped_by_reason == {"off": JOBS}
    with hook(station) as process:
        process.show(export(SIMPLE))
        process.end()
    counts = station.counts()
    assert (counts.pending, counts.dropped_by_reason) == (0, {"off": JOBS})


@pytest.mark.parametrize(
    ("options", "variables"),
    [({"enable": False}, {}), ({}, {"OPENCODE_HELICONE_ENABLE": "false"})],
    ids=["option", "variable"],
)
def test_switched_off_nothing_is_written(
    station: Station, options: dict[str, object], variables: dict[str, str]
) -> None:
    station = replace(station, variables=variables)
    with hook(station) as process:
        process.say("open", session=export(SIMPLE)["root"], options=options)
        assert process.process.wait(60) == NOTHING_WANTED
    assert not station.spool.exists()


def test_a_pattern_that_does_not_compile_stops_the_export_and_is_named(station: Station) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE), options={"redactPatterns": ["fine", "broken("]})
        process.show(export("b_tools"), options={"redactPatterns": ["fine"]}, directory="/home/dev/elsewhere")
        process.end()
    # Named by its number: somebody may have written the very secret down as a pattern.
    held = "redactPatterns from plugin options: redaction pattern 2 cannot be used (at character 6)"
    assert f"a folder is held: {held}" in station.text("hook.log")
    assert "broken(" not in station.text("hook.log")
    with station.ledger() as db:
        assert [one.reason for one in folders.held_folders(db)] == [held]
    assert refusals(station) == {}
    assert station.counts().pending == JOBS


def test_logins_that_cannot_be_read_are_told_of_once_in_the_log(station: Station) -> None:
    (station.home / "data" / "opencode" / "auth.json").mkdir(parents=True)
    with hook(station) as process:
        process.show(export(SIMPLE))
        process.show(export("b_tools"))
        process.end()
    assert station.text("hook.log").count("what OpenCode logs in with is not known") == 1
    assert station.counts().pending > JOBS


def test_no_secret_of_a_recording_is_in_any_byte_of_the_spool(station: Station) -> None:
    station = replace(station, variables={"OPENCODE_HELICONE_REDACT_PATTERNS": json.dumps([r"[\w.]+@example\.com"])})
    with hook(station) as process:
        process.show(export("j_unicode_secrets"))
        wait_until(lambda: station.counts().pending == JOBS)
        # Alive, so that the WAL is still there.
        everything = b"".join(path.read_bytes() for path in station.spool.rglob("*") if path.is_file())
        with station.ledger() as db:
            bodies = b"".join(
                body.body
                for row in db.execute("select id, key from job").fetchall()
                for body in job.bodies(db, row["id"], row["key"])
            )
        process.end()
    assert b"REDACTED" in bodies
    for secret in (*SECRETS.values(), *EMAILS):
        assert secret.encode() not in everything
        assert secret.encode() not in bodies


def test_a_known_value_of_the_environment_is_masked_and_nowhere_in_the_spool(station: Station) -> None:
    secret = "correct-horse-battery"
    station = replace(station, variables={"MY_SERVICE_TOKEN": secret})
    snapshot = export(SIMPLE)
    snapshot["sessions"][0]["messages"][0]["parts"][0]["text"] = f"it is {secret}, is it not"
    with hook(station) as process:
        process.show(snapshot)
        process.end()
    with station.ledger() as db:
        bodies = b"".join(
            body.body
            for row in db.execute("select id, key from job").fetchall()
            for body in job.bodies(db, row["id"], row["key"])
        )
    assert secret.encode() not in bodies
    assert b"it is [REDACTED], is it not" in bodies


def test_a_project_of_that_name_and_a_hostile_env_file_redirect_nothing(station: Station, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "app").mkdir(parents=True)
    for name in ("__init__", "queue", "worker", "__main__"):
        (project / "app" / f"{name}.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')\n")
    (project / ".env").write_text("HELICONE_ENDPOINT=http://127.0.0.1:1\nOPENCODE_HELICONE_ENABLE=false\n")
    station = replace(station, variables={"PYTHONPATH": "."})
    with hook(station, cwd=project) as process:
        process.show(export(SIMPLE))
        process.end()
    assert not (tmp_path / "trapped").exists()
    with station.ledger() as db:
        assert [one.endpoint for one in destinations.destinations(db)] == [NOWHERE]


def test_options_of_the_plugin_are_recorded_for_later_commands(station: Station) -> None:
    options = {"maxRetries": 2, "flushInterval": 9, "redactPatterns": ["abc"], "sessionPathPrefix": "/work"}
    with hook(station) as process:
        process.show(export(SIMPLE), options=options)
        process.end()
    with station.ledger() as db:
        (one,) = destinations.destinations(db)
        assert one.delivery_options == {"confirm": "off", "flushInterval": 9}
        recorded = folders.folder_options(db, destinations.fingerprint(db, PROJECT))
    # What may stand in the project's own files limits the jobs of its folder, not those of others.
    assert recorded == {
        "maxRetries": 2,
        "redactPatterns": ["abc"],
        "redactSecrets": True,
        "sessionPathPrefix": "/work",
    }


def test_a_ledger_that_is_locked_for_a_while_loses_nothing(station: Station) -> None:
    with station.ledger() as db:
        db.execute("begin immediate")
        with hook(station) as process:
            process.show(export(SIMPLE))
            wait_until(lambda: "trying again" in station.text("hook.log"))
            db.execute("rollback")
            assert process.end() == 0
    assert station.counts().pending == JOBS
    assert "the spool can be written again" in station.text("hook.log")


def test_nothing_is_printed(station: Station) -> None:
    line = json.dumps({"v": 1, "type": "snapshot", "directory": PROJECT, "options": {}, **export(SIMPLE)})
    done = subprocess.run(
        [sys.executable, "-I", "-m", "app", "hook"],
        input=f"rubbish\n{line}\n".encode(),
        env=station.environ,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture(autouse=True)
def _no_worker_is_left(station: Station) -> Iterator[None]:
    yield
    assert present(station.spool / "workers") == []


def test_a_worker_that_cannot_start_is_tried_again_with_growing_pauses_and_said_so(station: Station) -> None:
    station = replace(
        station, variables={"OPENCODE_HELICONE_WORKER": "auto", "SSL_CERT_FILE": str(station.home / "missing.pem")}
    )
    with hook(station) as process:
        process.show(export(SIMPLE))
        wait_until(lambda: "the worker ended with exit code" in station.text("hook.log"))
        process.end()
    assert "SSL_CERT_FILE" in station.text("worker.log")
    assert station.counts().pending == JOBS


def test_settings_that_are_wrong_are_counted_where_status_looks(station: Station) -> None:
    station = replace(station, variables={"OPENCODE_HELICONE_EXPROT_MODE": "off"})
    with hook(station) as process:
        process.say("open", session="ses_1")
        process.end()
    assert refusals(station) == {"SettingsError": 1}
    assert "did you mean OPENCODE_HELICONE_EXPORT_MODE?" in station.text("hook.log")


def test_a_limit_that_is_wrong_is_named_and_costs_nothing(station: Station) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE), options={"maxRetries": "x"})
        process.end()
    assert "maxRetries from plugin options: it should be a valid integer (retries)" in station.text("hook.log")
    assert station.counts().pending == JOBS


@pytest.mark.parametrize(("spool", "refused"), [("/nul/\0", 1), ("/half/\ud800", 2)], ids=["nul", "half a character"])
def test_a_first_line_with_an_impossible_spool_is_survived(station: Station, spool: str, refused: int) -> None:
    """The settings know that a path has no NUL; half a character they take."""
    with hook(replace(station, variables={"OPENCODE_HELICONE_SPOOL_DIRECTORY": ""})) as process:
        process.say("open", session="ses_1", options={"spoolDirectory": spool})
        process.say("deleted", session="ses_\ud800")
        process.show(export(SIMPLE))
        assert process.end() == 0
    with closing(open_ledger(station.home / "data" / "opencode-helicone")) as db:
        assert sum(count for _, count, _ in incidents.refusals(db)) == refused
        assert counts.counts(db).pending == JOBS


def test_a_snapshot_that_was_on_its_way_when_its_session_was_deleted_is_not_taken(station: Station) -> None:
    whole = export("c_second_prompt")
    entry = whole["sessions"][0]
    with hook(station) as process:
        process.show({**whole, "sessions": [{**entry, "messages": entry["messages"][:2]}]})
        process.store.delete(whole["root"])
        process.say("deleted", session=whole["root"])
        process.say("snapshot", **whole)
        process.end()
    assert station.counts().pending == 0


def test_what_a_deleted_session_left_without_a_key_is_dropped_too(station: Station) -> None:
    with hook(replace(station, key="")) as process:
        process.show(export(SIMPLE))
        process.end()
    with hook(station) as process:
        process.say("open", session="ses_other")
        process.say("deleted", session=export(SIMPLE)["root"])
        process.end()
    counts = station.counts()
    assert (counts.pending, counts.dropped_by_reason) == (0, {"deleted": JOBS})


def test_a_session_captured_again_with_a_key_moves_to_it_even_where_two_keys_are_known(station: Station) -> None:
    other = replace(station, key=api_key("z"))
    with hook(other) as process:
        process.show(export("b_tools"))
        process.end()
    for current in (replace(station, key=""), station):
        with hook(current) as process:
            process.show(export(SIMPLE))
            process.end()
    with station.ledger() as db:
        pending = {one.key_fingerprint: counts.counts(db, one.id).pending for one in destinations.destinations(db)}
        assert pending == {
            destinations.fingerprint(db, other.key): JOBS,
            "": 0,
            destinations.fingerprint(db, station.key): JOBS,
        }


def test_the_spool_is_bounded_also_where_no_worker_runs(station: Station) -> None:
    station = replace(station, variables={"OPENCODE_HELICONE_MAX_SPOOL_SIZE": "1500"})
    with hook(station) as process:
        for name in (SIMPLE, "b_tools", "f_subagent"):
            process.show(export(name))
        process.end()
    counts = station.counts()
    assert counts.body_bytes <= 1500
    assert counts.pending > JOBS  # without their text, which OpenCode's store has
    assert "maxSpoolSize" in station.text("hook.log")


def test_the_key_itself_is_masked_wherever_it_was_read_from(station: Station) -> None:
    key = "an-odd-key-of-" + "somebody"
    folder = station.home / "config" / "opencode-helicone"
    folder.mkdir(parents=True)
    (folder / ".env").write_text(f"HELICONE_API_KEY={key}\n")
    snapshot = export(SIMPLE)
    snapshot["sessions"][0]["messages"][0]["parts"][0]["text"] = f"is {key} my key?"
    with hook(replace(station, key="")) as process:
        process.show(snapshot)
        process.end()
    with station.ledger() as db:
        jobs = db.execute("select id, key from job").fetchall()
        bodies = b"".join(body.body for row in jobs for body in job.bodies(db, row["id"], row["key"]))
    assert b"is [REDACTED] my key?" in bodies


def test_a_spool_that_cannot_be_written_is_given_up_once_for_all_lines(station: Station) -> None:
    reader, writer = os.pipe()
    options = {"spoolDirectory": "/proc/nowhere"}
    line = {"v": 1, "type": "snapshot", "directory": PROJECT, "options": options, **export(SIMPLE)}
    os.write(writer, (json.dumps(line) + "\n").encode() * 3)
    os.close(writer)
    sources = unattended({**station.environ, "OPENCODE_HELICONE_SPOOL_DIRECTORY": ""})
    pipe_reader = PipeReader(reader)
    wait_until(lambda: pipe_reader.ended)
    hook_daemon = Daemon(pipe_reader, sources)
    hook_daemon._tries_left = 1
    hook_daemon.serve()
    assert hook_daemon._tries_left <= 0
    os.close(reader)


def test_it_ends_when_its_terminal_is_closed(station: Station) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen([sys.executable, "-I", "-m", "app", "hook"], stdin=theirs, env=station.environ)
    os.close(theirs)
    os.close(ours)
    assert process.wait(300) == 0

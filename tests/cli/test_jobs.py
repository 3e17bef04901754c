"""`jobs`, `sent`, `stats` and `tail` as a person and a script meet them: real files, no server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.cli import layout
from app.cli.options import UNREAD
from app.ledger import claims, counters
from app.ledger.job import FailedAttempt
from app.runtime import clock
from app.sources.opencode.store import store_file
from tests.ledger.test_dead_letters import die
from tests.support import stores
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station
from tests.support.snapshots import assistant, entry, snapshot, text, user
from tests.support.typed_commands import typed
from tests.system.test_cli import complaint, example, said, shape

TITLE, OTHER_TITLE = "Mend the login", "Écrire la documentation, très longue, de tout le projet de la boutique"
SHOP, DOCS = "/home/dev/shop", "/home/dev/docs"
USED = {"input": 400, "output": 40, "reasoning": 10, "cache": {"read": 600, "write": 5}}


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


@pytest.fixture
def bench(station: Station) -> Iterator[LedgerBench]:
    """Of ses_1 a turn is delivered and one is dead; of ses_2 one waits after a failure. OpenCode's store has both."""
    now_ms = clock.now_ms()
    shown = []
    for name, title, directory in (("ses_1", TITLE, SHOP), ("ses_2", OTHER_TITLE, DOCS)):
        asked = user(f"msg_{name}_q", now_ms - 5_000, text("hello", f"prt_{name}_q"))
        answered = assistant(
            f"msg_{name}_a",
            now_ms - 4_000,
            text("yes", f"prt_{name}_a"),
            parentID=f"msg_{name}_q",
            tokens=USED,
            cost=0.25,
            providerID="acme",
            modelID=f"model-{name}",
            agent="build",
        )
        info = {"id": name, "title": title, "directory": directory}
        shown.append(snapshot(entry(asked, answered, **info)))
    stores.put(store_file(station.environ), *shown)
    with station.ledger() as db:
        bench = LedgerBench(db)
        bench.now_ms = now_ms
        done = replace(version("msg_ses_1_q"), redactions=3, redacted={"assignment": 2, "pattern 1": 1})
        bench.put(done, records=2)
        bench.deliver(done)
        die(bench, version("t2"), "413: error too large")
        waits = version("msg_ses_2_q", session="ses_2")
        bench.put(waits)
        bench.retry_later(bench.claimed(waits), due_ms=now_ms + 3_600_000, error="503: empty body")
        yield bench


def keys(station: Station, *arguments: str) -> list[str]:
    return [one["turn"] for one in said(typed(station, "jobs", "list", "--json", *arguments))["jobs"]]


def test_the_examples_of_the_layout_hold() -> None:
    import doctest  # noqa: PLC0415

    assert doctest.testmod(layout).failed == 0


# --- jobs list


def test_list_shows_titles_projects_and_reasons(station: Station, bench: LedgerBench) -> None:
    told = said(typed(station, "jobs", "list", "--json"))
    assert shape(told) == shape(example("jobs list"))
    assert told["counts"] == {"pending": 1, "delivered": 1, "dead": 1, "dropped": 0, "superseded": 0}
    assert {one["title"] for one in told["jobs"]} == {TITLE, OTHER_TITLE}
    lines = typed(station, "jobs", "list").stdout
    for word in ("3 jobs: 1 pending, 1 delivered, 1 dead", TITLE, "shop", "413: error too large", "next try in 59 min"):
        assert word in lines
    assert f"jobs show {said(typed(station, 'jobs', 'list', '--json'))['jobs'][0]['key'][:12]}" in lines
    assert bench.row(version("t2"))["key"][:13] not in lines


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("arguments", "turns"),
    [
        (["--state", "dead"], ["t2"]),
        (["--state", "pending", "--state", "delivered"], ["msg_ses_2_q", "msg_ses_1_q"]),
        (["--state", "superseded"], []),
        (["--session", "ses_2"], ["msg_ses_2_q"]),
        (["--session", "ses_3"], []),
        (["--title", "LOGIN"], ["t2", "msg_ses_1_q"]),
        (["--title", "login", "--state", "dead"], ["t2"]),
        (["--title", "nothing like it"], []),
        (["--error", "empty BODY"], ["msg_ses_2_q"]),
        (["--error", "5d09c886"], []),
        (["--since", "1h", "--limit", "1"], ["msg_ses_2_q"]),
        (["--before", "1h"], []),
    ],
)
def test_list_narrows(station: Station, arguments: list[str], turns: list[str]) -> None:
    assert sorted(keys(station, *arguments)) == sorted(turns)


def test_list_narrows_by_project_and_by_the_fingerprint_of_an_error(station: Station, bench: LedgerBench) -> None:
    from app.capture.targets import folder  # noqa: PLC0415

    for name, directory in (("ses_1", SHOP), ("ses_2", DOCS)):
        bench.db.execute("update session set folder = ? where name = ?", (folder(bench.db, directory), name))
    for wanted in ("docs", DOCS, "dev/docs"):
        assert keys(station, "--project", wanted) == ["msg_ses_2_q"]
    assert "there are docs, shop" in complaint(typed(station, "jobs", "list", "--project", "ocs"), 1)
    fingerprint = said(typed(station, "dead", "list", "--json"))["groups"][0]["fingerprint"]
    assert keys(station, "--error", fingerprint.upper()) == ["t2"]


def test_list_says_that_more_is_there(station: Station, bench: LedgerBench) -> None:
    assert bench
    told = typed(station, "jobs", "list", "--limit", "2")
    assert "more: --limit 8" in told.stdout
    assert said(typed(station, "jobs", "list", "--limit", "2", "--json"))["is_all"] is False


def test_an_empty_queue_and_a_filter_that_nothing_passes_are_two_answers(station: Station) -> None:
    assert typed(station, "jobs", "list").stdout == "0 jobs: the queue is empty\n"
    with station.ledger() as db:
        LedgerBench(db).put(version())
    assert (
        typed(station, "jobs", "list", "--state", "dead").stdout == "1 job: 1 pending\nnone of them is as asked for\n"
    )


def test_without_opencodes_store_ids_stand_for_titles(station: Station) -> None:
    with station.ledger() as db:
        LedgerBench(db).put(version())
    told = typed(station, "jobs", "list").stdout
    assert "without titles: OpenCode's store" in told
    assert "ses_1" in told
    assert "--title needs OpenCode's store" in complaint(typed(station, "jobs", "list", "--title", "x"), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs", "list", "--state", "lost"],
        ["jobs", "list", "--since", "tomorrow"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--stat", "dead"],
        ["jobs", "show"],
        ["sent", "ses_1", "--since", "1d"],
        ["stats", "--by", "moon"],
        ["tail", "-n", "-1"],
    ],
)
def test_wrong_arguments_end_with_2(station: Station, arguments: list[str]) -> None:
    done = typed(station, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr


# --- jobs show


def test_show_is_a_timeline_with_records(station: Station, bench: LedgerBench) -> None:
    key = bench.row(version("t2"))["key"]
    (told,) = said(typed(station, "jobs", "show", key[:50], "--json"))["jobs"]
    assert shape({"jobs": [told], "problem": ""}) == shape(example("jobs show"))
    lines = typed(station, "jobs", "show", key.upper()).stdout
    for word in ("dead: 413: error too large", TITLE, SHOP, "turn t2", "queued", "attempt 1, ", "dead after 1 attempt"):
        assert word in lines
    assert "the answer began: no room" in lines
    assert f"dead show {key[:12]}" in lines


def test_show_says_which_records_were_taken_and_when_the_next_try_is(station: Station, bench: LedgerBench) -> None:
    lines = typed(station, "jobs", "show", bench.row(version("msg_ses_1_q"))["key"]).stdout
    assert lines.count("\ntaken ") == 0  # their ids are not kept: these were made without
    waiting = typed(station, "jobs", "show", bench.row(version("msg_ses_2_q", session="ses_2"))["key"]).stdout
    assert "next try, in " in waiting
    assert "not yet" in waiting


@pytest.mark.usefixtures("bench")
def test_show_takes_the_beginning_of_a_sessions_id(station: Station) -> None:
    lines = typed(station, "jobs", "show", "ses_1").stdout
    for word in (TITLE, "2 jobs: ", "turn t2", "413: error too large"):
        assert word in lines
    told = said(typed(station, "jobs", "show", "ses_1", "--json"))["jobs"]
    assert {one["job"]["turn"] for one in told} == {"t2", "msg_ses_1_q"}
    assert "several sessions begin with ses_: ses_1, ses_2" in complaint(typed(station, "jobs", "show", "ses_"), 1)
    assert "nothing in the queue has a key" in complaint(typed(station, "jobs", "show", "zzz"), 1)
    assert "several jobs' keys begin with 0: " in complaint(typed(station, "jobs", "show", "0"), 1)


# --- sent


def test_sent_says_what_left_by_session_and_by_turn(station: Station, bench: LedgerBench) -> None:
    told = said(typed(station, "sent", "--json"))
    (one,) = told["sessions"]
    assert (one["title"], one["records"], one["redactions"], told["not_taken"]) == (TITLE, 2, 3, 2)
    assert one["record_bytes"] == bench.row(version("msg_ses_1_q"))["record_bytes"] > 0
    lines = typed(station, "sent").stdout
    for word in ("2 records of 1 session", "3 redactions", "to https://example.invalid", "2 jobs beside these"):
        assert word in lines
    of_one = said(typed(station, "sent", "ses_1", "--json"))
    assert shape(of_one) == shape(example("sent"))
    assert {(job["turn"], job["taken"]) for job in of_one["jobs"]} == {("msg_ses_1_q", 2), ("t2", 0)}
    assert "posted perhaps, and not taken" in typed(station, "sent", "ses_1").stdout


def test_of_what_was_sent_before_sizes_were_kept_they_are_not_known(station: Station, bench: LedgerBench) -> None:
    bench.db.execute("update job set record_bytes = null, redactions = null")
    assert "from before their size was kept" in typed(station, "sent").stdout
    assert said(typed(station, "sent", "--json"))["sessions"][0]["unmeasured"] == 1
    assert "?" in typed(station, "sent", "ses_1").stdout


def test_nothing_sent_is_said(station: Station) -> None:
    assert typed(station, "sent").stdout.startswith("nothing left since ")
    assert "nothing in the queue" in complaint(typed(station, "sent", "ses_1"), 1)


# --- stats


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("model", ["acme/model-ses_1", "acme/model-ses_2"]),
        ("project", [DOCS, SHOP]),
        ("agent", ["build"]),
        ("session", ["ses_1", "ses_2"]),
    ],
)
def test_stats_sum_up_by(station: Station, by: str, names: list[str]) -> None:
    told = said(typed(station, "stats", "--by", by, "--json"))
    assert sorted(one["name"] for one in told["sums"]) == names
    total = told["total"]
    assert (total["turns"], total["delivered"], total["calls"], total["cost_usd"]) == (2, 1, 2, 0.5)
    assert (total["input_tokens"], total["cache_read_tokens"], total["cache_write_tokens"]) == (800, 1200, 10)
    assert total["output_tokens"] == 100
    lines = typed(station, "stats", "--by", by).stdout
    assert "2 turns, 2 calls, $0.50" in lines
    assert "1 of 2 turns not delivered: opencode-helicone verify" in lines


@pytest.mark.usefixtures("bench")
def test_stats_tell_what_the_queue_counted(station: Station) -> None:
    told = said(typed(station, "stats", "--json"))
    assert shape(told) == shape(example("stats"))
    assert (told["total"]["errors"], told["total"]["failed_tools"]) == (0, 0)
    counted = {(one["kind"], one["name"]): one["count"] for one in told["counters"]}
    assert counted == {
        ("delivered", ""): 1,
        ("failed", "400"): 1,
        ("failed", "500"): 1,
        ("redacted", "assignment"): 2,
        ("redacted", "pattern 1"): 1,
    }
    assert "3 redacted: assignment (2), pattern 1 (1)" in typed(station, "stats").stdout


@pytest.mark.usefixtures("bench")
def test_stats_narrow(station: Station) -> None:
    (one,) = said(typed(station, "stats", "--project", "shop", "--by", "session", "--json"))["sums"]
    assert one["title"] == TITLE
    for command in (("stats",), ("jobs", "list")):
        unknown = complaint(typed(station, *command, "--project", "nowhere"), 1)
        assert unknown.endswith("has no session of a project nowhere: there are docs, shop")
    assert said(typed(station, "stats", "--by", "model", "--since", "1s", "--json"))["sums"] == []
    assert "no calls since" in typed(station, "stats", "--by", "model", "--since", "1s").stdout


def test_stats_without_a_store_say_so(station: Station) -> None:
    assert "OpenCode's store" in complaint(typed(station, "stats"), 1)


# --- tail


@pytest.mark.usefixtures("bench")
def test_tail_prints_the_last_events(station: Station) -> None:
    lines = typed(station, "tail", "--json").stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert {one["what"] for one in told} == {"delivered", "dead", "queued"}
    assert shape(told[0]) == shape(example("tail"))
    assert len(typed(station, "tail", "-n", "2").stdout.splitlines()) == 2
    assert typed(station, "tail", "-n", "0").stdout == ""
    assert TITLE in typed(station, "tail").stdout


# --- terminals, pipes, files


def on_terminal(station: Station, columns: int, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """What a command prints to a terminal of this width, and its exit code."""
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, columns))
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        env={**station.environ, **variables},
        cwd=station.home,
        stdin=subprocess.DEVNULL,
        stdout=inner,
        stderr=inner,
    )
    os.close(inner)
    said_there = b""
    while True:
        try:
            piece = os.read(outer, 1 << 16)
        except OSError:  # its end, on Linux
            break
        if not piece:
            break
        said_there += piece
    os.close(outer)
    return process.wait(60), said_there.decode().splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    "arguments",
    [["jobs", "list"], ["sent"], ["stats", "--by", "session"], ["tail"], ["jobs", "show", "ses_2"]],
    ids=" ".join,
)
def test_60_columns_are_enough(station: Station, arguments: list[str]) -> None:
    code, lines = on_terminal(station, 60, *arguments, NO_COLOR="1")
    assert code == 0
    tables = [line for line in lines if "opencode-helicone " not in line]
    assert max(map(layout.columns_of, tables)) <= 60
    assert not any("\x1b" in line for line in lines)
    assert any("…" in line or TITLE in line for line in lines)


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("columns", [60, 100, 130, 180])
def test_sessions_of_one_title_are_told_apart_at_any_width(station: Station, columns: int) -> None:
    _, lines = on_terminal(station, columns, "stats", "--by", "session", NO_COLOR="1")
    told = said(typed(station, "stats", "--by", "session", "--json"))["sums"]
    for one in told:
        when = layout.local(one["last_ms"], "%Y-%m-%d %H:%M")
        assert [line for line in lines if one["name"] in line and when in line], lines
    assert max(map(layout.columns_of, lines)) <= columns


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
def test_a_closed_pipe_ends_it_quietly(station: Station) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "app", "tail", "-f"],
        env=station.environ,
        cwd=station.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        with station.ledger() as db:
            LedgerBench(db).put(version("later"))
        assert process.stderr.read() == b""
        assert process.wait(60) == UNREAD


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
def test_ctrl_c_ends_what_follows_with_130(station: Station) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "app", "tail", "-f"],
        env=station.environ,
        cwd=station.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.mark.parametrize("command", [["jobs", "list"], ["sent"], ["tail"], ["jobs", "show", "x"]], ids=" ".join)
def test_a_ledger_that_is_newer_or_not_ours_is_one_line(station: Station, command: list[str]) -> None:
    with station.ledger() as db:
        db.execute("pragma user_version = 900")
    assert "install the newer version" in complaint(typed(station, *command), 1)


def test_a_damaged_ledger_is_recovered(station: Station, bench: LedgerBench) -> None:
    path = bench.db.path  # type: ignore[attr-defined]  # a Ledger
    bench.db.close()
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)
    told = typed(station, "jobs", "list")
    assert told.returncode == 0
    assert "jobs" in told.stdout


def test_counters_name_no_job(station: Station, bench: LedgerBench) -> None:
    wanted = version("t9")
    bench.put(wanted)
    failed = FailedAttempt(bench.now_ms, "record 0d5c1de2-7bd5-5f5f-8a7e-8a1b2c3d4e5f of job 0123456789ab is damaged")
    claims.dead_letter(bench.db, bench.claimed(wanted), failed)
    names = {one.name for one in counters.counters(bench.db, bench.now_ms) if one.kind == "failed"}
    assert "record # of job # is damaged" in names
    assert station

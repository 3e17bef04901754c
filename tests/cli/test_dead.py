"""`dead …` and what `status` says of it, as a person and a script meet them: real files and servers."""

from __future__ import annotations

import doctest
import json
import os
import pty
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.ledger import counts, job
from app.ledger import counts as ledger_counts
from app.ledger import dead_letters as ledger_dead_letters
from app.ledger.dead_letters import Choice
from app.operations import dead_letters
from app.privacy.excerpt import WITHHELD
from app.queue import Queue
from app.settings.model import Settings
from tests.ledger.test_dead_letters import die
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station, worker
from tests.support.recorded import export_files
from tests.support.servers import Exchange, receiving, scripted, whole
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until
from tests.system.test_cli import complaint, example, said, shape

QUESTION = "[[script:hello]] Say hello"
"""Of the recording's person, and in the record."""


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


@pytest.fixture
def dead_jobs(station: Station) -> Iterator[LedgerBench]:
    """Two letters with one error and one with another, and a dropped job beside them."""
    with station.ledger() as db:
        bench = LedgerBench(db)
        for turn, error in (("t1", "400: error row 1"), ("t2", "400: error row 2"), ("t3", "413: HTML")):
            bench.now_ms += 1
            die(bench, version(turn), error)
        bench.put(version("t4"), off=True)
        yield bench


def keys(station: Station, *arguments: str) -> list[str]:
    return [one["key"] for one in said(typed(station, "dead", "list", "--json", *arguments))["letters"]]


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(dead_letters).failed == 0


@pytest.mark.usefixtures("dead_jobs")
def test_list_groups_by_error_and_shows_short_keys(station: Station) -> None:
    told = said(typed(station, "dead", "list", "--json"))
    assert shape(told) == shape(example("dead list"))
    assert (told["jobs"], [one["jobs"] for one in told["groups"]]) == (3, [2, 1])
    lines = typed(station, "dead", "list").stdout
    for word in ("3 dead", "400: error row #", told["groups"][0]["fingerprint"], version("t1").key[:12], "ses_1 t2"):
        assert word in lines
    assert version("t1").key[:13] not in lines
    dropped = said(typed(station, "dead", "list", "--dropped", "--json"))
    assert [(one["reason"], one["jobs"]) for one in dropped["groups"]] == [("off", 1)]
    assert [one["turn"] for one in dropped["letters"]] == ["t4"]
    assert "1 off" in typed(station, "status", "-v").stdout


@pytest.mark.usefixtures("dead_jobs")
def test_list_narrows_by_error_and_time(station: Station) -> None:
    fingerprint = said(typed(station, "dead", "list", "--json"))["groups"][0]["fingerprint"]
    assert len(keys(station, "--error", fingerprint)) == 2
    assert len(keys(station, "--since", "1970-01-01T00:00:01.003Z")) == 2
    assert keys(station, "--since", "1h") == []
    assert typed(station, "dead", "list", "--since", "tomorrow").returncode == 2
    assert typed(station, "dead", "list", "--error", "x", "--dropped").returncode == 2


@pytest.mark.usefixtures("dead_jobs")
def test_show_tells_the_attempts_and_what_to_do(station: Station) -> None:
    key = version("t3").key
    (told,) = said(typed(station, "dead", "show", key, "--json"))["letters"]
    assert shape({"letters": [told]}) == shape(example("dead show"))
    assert (told["letter"]["key"], told["attempts"][0]["answer"], told["bodies"]) == (key, "no room", [])
    lines = typed(station, "dead", "show", key).stdout
    for word in ("413: HTML", "session ses_1, turn t3", "the answer began: no room", "what to do: Helicone refuses"):
        assert word in lines
    assert "content, without" not in lines
    assert "captured while export was off" in typed(station, "dead", "show", version("t4").key).stdout


@pytest.mark.usefixtures("dead_jobs")
def test_show_takes_a_session_and_shows_each_of_its_dead_jobs(station: Station) -> None:
    told = said(typed(station, "dead", "show", "ses_1", "--json"))["letters"]
    assert [one["letter"]["turn"] for one in told] == ["t1", "t2", "t3"]
    lines = typed(station, "dead", "show", "ses_1").stdout
    assert lines.count("what to do: ") == 3
    for wrong in ("ses_", "SES_1"):
        assert "or is of a session of that name" in complaint(typed(station, "dead", "show", wrong), 1)


def test_a_key_that_is_ambiguous_or_unknown_is_refused_with_names(station: Station, dead_jobs: LedgerBench) -> None:
    line = complaint(typed(station, "dead", "show", version("t1").key[:20]), 1)
    assert version("t1").key[:24] in line
    assert "beginning of several keys" in complaint(typed(station, "dead", "retry", version("t1").key[:20]), 1)
    assert "begins with abcdef" in complaint(typed(station, "dead", "purge", "abcdef"), 1)
    assert "was dropped (off)" in complaint(typed(station, "dead", "retry", version("t4").key), 1)
    assert counts.counts(dead_jobs.db).dead == 3


@pytest.mark.usefixtures("dead_jobs")
def test_an_error_that_is_typed_as_a_key_is_told_with_its_option(station: Station) -> None:
    fingerprint = said(typed(station, "dead", "list", "--json"))["groups"][0]["fingerprint"]
    assert complaint(typed(station, "dead", "retry", fingerprint), 1).endswith(f"say --error {fingerprint}")


def test_bulk_asks_before_it_acts_and_refuses_where_nobody_can_be_asked(
    station: Station, dead_jobs: LedgerBench
) -> None:
    assert "this would retry 3 dead letters: say --yes" in complaint(typed(station, "dead", "retry", "--all"), 2)
    assert "this would purge 1 dead letter:" in complaint(
        typed(station, "dead", "purge", "--error", dead_job_error(dead_jobs, "t3")), 2
    )
    for arguments in (["retry"], ["retry", "--all", version("t1").key], ["purge", "--all", "--since", "1h", "--yes"]):
        assert typed(station, "dead", *arguments).returncode == 2
    assert counts.counts(dead_jobs.db).dead == 3
    assert said(typed(station, "dead", "retry", "--since", "1h", "--yes", "--json")) == {"jobs": 0}


def dead_job_error(dead_jobs: LedgerBench, turn: str) -> str:
    (letter,) = ledger_dead_letters.dead_letters(dead_jobs.db, Choice(keys=(version(turn).key,)))
    return letter.fingerprint


@pytest.mark.parametrize(("answered", "dead", "code"), [("y\n", 0, 0), ("n\n", 3, 1)], ids=["yes", "no"])
def test_a_person_at_a_terminal_is_asked(
    station: Station, dead_jobs: LedgerBench, answered: str, dead: int, code: int
) -> None:
    outer, inner = pty.openpty()
    os.write(outer, answered.encode())
    with os.fdopen(inner) as terminal:
        done = typed(station, "dead", "purge", "--all", stdin=terminal)
    os.close(outer)
    assert "purge 3 dead letters?" in done.stderr
    assert (done.returncode, counts.counts(dead_jobs.db).dead) == (code, dead)


def test_retry_and_purge_take_what_is_named_and_never_what_was_dropped(
    station: Station, dead_jobs: LedgerBench
) -> None:
    assert "1 dead letter purged" in typed(station, "dead", "purge", version("t3").key).stdout
    told = said(typed(station, "dead", "retry", "--all", "--yes", "--json"))
    assert (told, shape(told)) == ({"jobs": 2}, shape(example("dead retry")))
    counts = ledger_counts.counts(dead_jobs.db)
    assert (counts.pending, counts.dead, dict(counts.dropped_by_reason)) == (2, 0, {"off": 1, "purged": 1})
    again = typed(station, "dead", "retry", "--all")
    assert (again.returncode, again.stdout) == (0, "0 dead letters will be tried again\n")


def test_a_letter_that_was_retried_and_died_again_says_when_it_was_tried_first(
    station: Station, dead_jobs: LedgerBench
) -> None:
    key = version("t1").key
    assert ledger_dead_letters.retry_dead(dead_jobs.db, Choice(keys=(key,)), dead_jobs.now_ms + 60_000)
    told = typed(station, "jobs", "show", key).stdout
    assert told.index("attempt 1, ") < told.index("queued again: somebody had it retried")
    dead = "update job set state = 'dead', due_ms = null, finished_ms = 1 << 40, error = '400: no' where key = ?"
    dead_jobs.db.execute(dead, (key,))
    assert "again, to be retried; the first attempt known: " in typed(station, "dead", "show", key).stdout


@pytest.mark.usefixtures("dead_jobs")
def test_retry_says_that_no_worker_runs(station: Station) -> None:
    assert "no worker runs" in typed(station, "dead", "retry", version("t3").key).stdout


@pytest.mark.slow
def test_more_letters_than_a_batch_are_retried_once_each(dead_jobs: LedgerBench, station: Station) -> None:
    dead_jobs.db.execute("pragma synchronous = off")
    for number in range(job.BATCH + 10):
        die(dead_jobs, version(f"many {number}"))
    settings = Settings(spool_directory=station.spool)
    assert dead_letters.retry(dead_jobs.db, settings, Choice(), dead_jobs.now_ms) == job.BATCH + 13
    queue = Queue(station.spool, dead_jobs.destination)
    assert queue.huey.pending_count() == dead_letters.WAKES_MAX
    queue.close()


# --- with a server


@pytest.mark.slow
def test_an_answer_that_holds_canaries_is_shown_without_them(station: Station) -> None:
    """From the wire to `dead show`: the key in escapes and the transcript in the answer to each record."""
    leak = json.dumps({"error": "denied", "key": station.key}).replace("-", "\\u002d")

    def tell(exchange: Exchange) -> None:
        exchange.read_body()
        is_question = QUESTION.encode() in exchange.heard.body
        exchange.send(whole(400, (f"cannot parse {QUESTION}" if is_question else leak).encode()))

    with scripted(tell) as server:
        here = replace(station, endpoint=f"{server.url}/custom/v1/log")
        assert typed(here, "import", *map(str, export_files("a_simple"))).returncode == 0
        assert here.run("flush", "--timeout", "30").returncode == 0
    found = keys(here)
    told = [said(typed(here, "dead", "show", key, "--json", "--bodies"))["letters"][0] for key in found]
    answers = sorted(one["attempts"][0]["answer"] for one in told)
    assert answers[0] == WITHHELD
    assert "[REDACTED]" in answers[1]
    assert all(one["bodies"] for one in told)
    shown = "".join(typed(here, "dead", "show", key, "--bodies").stdout for key in found)
    assert "providerRequest" in shown
    with here.ledger() as db:
        kept = "\n".join(db.iterdump())
    for text in (shown, json.dumps(told), kept):
        assert here.key not in text
        assert here.key.replace("-", "\\u002d") not in text
    assert QUESTION not in kept + here.text("worker.log")


@pytest.mark.slow
def test_a_retried_letter_wakes_the_worker_that_runs(station: Station, tmp_path: Path) -> None:
    with receiving(tmp_path / "store.db") as receiver:
        here = replace(station, endpoint=receiver.url)
        receiver.fault({"status": 400, "times": 2})
        assert typed(here, "import", *map(str, export_files("a_simple"))).returncode == 0
        with worker(here):
            wait_until(lambda: here.counts().dead == 2)
            told = said(typed(here, "status", "--json"))
            (ours,) = told["destinations"]
            assert (ours["health"], [one["jobs"] for one in ours["dead_letters"]]) == ("fine", [2])
            lines = typed(here, "status", "-v").stdout
            assert f"2 dead (error {ours['dead_letters'][0]['fingerprint']}): 400: empty body" in lines
            assert "2 dead letters: opencode-helicone dead list" in lines
            retried = typed(here, "dead", "retry", "--all", "--yes")
            assert retried.stdout == "2 dead letters will be tried again\n"
            wait_until(lambda: here.delivered(2))


def test_a_destination_that_nothing_was_ever_posted_to_is_not_tried_and_not_fine(station: Station) -> None:
    assert said(typed(station, "status", "--json"))["destinations"][0]["health"] == "not tried"
    assert typed(station, "import", *map(str, export_files("a_simple"))).returncode == 0
    assert "health: not tried" in typed(station, "status", "-v").stdout
    assert "not tried; 2 job(s) wait" in typed(station, "doctor", "-v").stdout
    with receiving(station.home / "store.db") as receiver:
        here = replace(station, endpoint=receiver.url)
        assert typed(here, "import", *map(str, export_files("a_simple"))).returncode == 0
        assert typed(here, "flush").returncode == 0
        assert "health: fine" in typed(here, "status", "-v").stdout


def test_status_tells_health_backoff_isolation_and_bounds(station: Station) -> None:
    with station.ledger() as db:
        bench = LedgerBench(db)
        for turn in ("waits", "kills"):
            bench.put(version(turn, session=turn))
        db.execute("update job set due_ms = 9e15 where key = ?", (version("waits", session="waits").key,))
        db.execute("update job set kills = 2 where key = ?", (version("kills", session="kills").key,))
        db.execute("update destination set health = 'quota'")
    told = said(typed(station, "status", "--json", "--set", "maxSpoolSize=1000000"))
    (one,) = [one for one in told["destinations"] if one["id"] is not None]
    assert one["conditions"] == {"in_backoff": 1, "isolated": 1}
    assert (one["health"], told["spool_bytes_max"], told["age_ms_max"]) == ("quota", 65_000_000, 604_800_000)
    lines = typed(station, "status", "-v").stdout
    for word in ("health: quota", "1 in backoff", "1 tried alone"):
        assert word in lines


@pytest.mark.usefixtures("dead_jobs")
def test_a_group_shows_what_was_answered(station: Station) -> None:
    told = said(typed(station, "dead", "list", "--json"))["groups"]
    assert [one["answer"] for one in told] == ["no room", "no room"]
    assert typed(station, "dead", "list").stdout.count("\n  the answer began: no room\n") == 2


@pytest.mark.usefixtures("dead_jobs")
@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_an_error_that_no_letter_has_is_named_with_exit_code_1(station: Station, verb: str) -> None:
    for yes in ([], ["--yes"]):
        line = complaint(typed(station, "dead", verb, "--error", "ABCdef12", *yes), 1)
        assert "no dead letter has the error ABCdef12" in line


@pytest.mark.usefixtures("dead_jobs")
def test_what_was_typed_is_shown_as_it_was_typed(station: Station) -> None:
    assert "begins with ABCdef" in complaint(typed(station, "dead", "show", "ABCdef"), 1)
    assert "begins with ABCdef" in complaint(typed(station, "dead", "retry", "ABCdef"), 1)
    assert typed(station, "dead", "show", version("t3").key.upper()).returncode == 0

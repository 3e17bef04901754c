"""Which destinations `flush` looks at, and what it says where nothing was ever captured."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.ledger import flow, notices
from app.runtime import clock
from app.runtime.failpoint import VARIABLE
from app.runtime.liveness import Announced, present
from app.sources.opencode.store import store_file
from tests.support import snapshots
from tests.support.processes import Station, hook, worker
from tests.support.recorded import export
from tests.support.servers import Receiver, api_key, nobody, receiving
from tests.support.stores import put
from tests.support.waiting import wait_until
from tests.system.test_cli import JOBS, SIMPLE, files, said

NOTHING = "nothing was ever captured here"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    (tmp_path / "home").mkdir()
    return Station(tmp_path / "home", receiver.url)


def capture(station: Station, directory: str, session: str = SIMPLE) -> None:
    """OpenCode was asked one question in this folder."""
    with hook(station) as process:
        process.show(export(session), directory=directory)
        assert process.end() == 0


def asked_now(name: str, directory: str) -> snapshots.Fields:
    """A session of a moment ago."""
    now_ms = clock.now_ms()
    asked = snapshots.user(f"msg_{name}_1", now_ms)
    answered = snapshots.assistant(f"msg_{name}_2", now_ms + 1, parent=f"msg_{name}_1")
    time = {"created": now_ms, "updated": now_ms}
    return snapshots.snapshot(snapshots.entry(asked, answered, id=f"ses_{name}", directory=directory, time=time))


def with_another_key(station: Station) -> Station:
    return replace(station, key=api_key("b"))


def test_jobs_of_a_folder_with_another_key_are_left_and_named(station: Station) -> None:
    capture(with_another_key(station), "/home/dev/other")
    capture(station, str(station.home))
    told = said(station.run("flush", "--json"), 1)
    assert (told["jobs"]["pending"], told["jobs"]["delivered"], told["elsewhere"]) == (0, JOBS, JOBS)
    assert "another destination" in told["waiting"][0]


def test_it_says_what_it_has_delivered_now_and_what_there_is_in_all(station: Station) -> None:
    capture(station, str(station.home))
    assert station.run("flush").stdout.startswith(f"delivered {JOBS} now\nin all: 0 pending, {JOBS} delivered, ")
    assert station.run("flush").stdout.startswith(f"delivered 0 now\nin all: 0 pending, {JOBS} delivered, ")


def test_without_a_key_the_jobs_that_were_captured_with_one_are_seen(station: Station) -> None:
    capture(station, str(station.home))
    done = replace(station, key="").run("flush")
    assert done.returncode == 1
    assert f"{JOBS} jobs for {station.endpoint}" in done.stdout


def test_jobs_of_a_folder_with_another_key_are_waited_for_while_their_worker_is_there(station: Station) -> None:
    other = with_another_key(station)
    capture(other, "/home/dev/other")
    with worker(other):
        wait_until(lambda: present(station.spool / "workers"))
        told = said(station.run("flush", "--json", "--timeout", "60"))
    assert (told["jobs"]["delivered"], told["elsewhere"]) == (0, 0)
    assert station.delivered(JOBS)


def test_jobs_that_no_captured_folder_means_any_more_keep_nobody(station: Station) -> None:
    with nobody() as url:
        capture(replace(station, endpoint=url), str(station.home))
    capture(station, str(station.home))
    assert station.run("flush").returncode == 0


def test_a_folder_that_never_had_a_job_is_told_of(station: Station) -> None:
    done = station.run("flush")
    assert (done.returncode, NOTHING in done.stdout) == (0, True)
    assert station.run("flush", "--expect-some", "--timeout", "0").returncode == 1
    capture(station, "/home/dev/other")
    elsewhere = station.run("flush", "--expect-some", "--timeout", "1")
    assert (elsewhere.returncode, NOTHING in elsewhere.stdout) == (1, True)
    capture(station, str(station.home), "b_tools")
    here = station.run("flush", "--expect-some")
    assert (here.returncode, NOTHING in here.stdout) == (0, False)
    again = said(station.run("flush", "--expect-some", "--json"))
    assert again["captured_here"]


def test_what_was_imported_into_a_folder_counts_for_that_folder_alone(station: Station) -> None:
    assert station.run("import", *files(SIMPLE)).returncode == 0
    assert not said(station.run("flush", "--json"))["captured_here"]


def test_what_a_killed_hook_had_not_read_is_read_and_sent(station: Station) -> None:
    with hook(replace(station, variables={VARIABLE: "notice.noted"})) as process:
        process.show(export(SIMPLE), directory=str(station.home))
        assert process.process.wait(60) == -signal.SIGKILL
    assert [one["sessions"] for one in said(station.run("status", "--json"))["unread"]] == [1]
    told = said(station.run("flush", "--expect-some", "--json"))
    assert (told["jobs"]["delivered"], told["unread"]) == (JOBS, [])


def test_what_was_written_in_a_captured_folder_and_nobody_told_of_is_read_and_sent(station: Station) -> None:
    capture(station, str(station.home))
    for name, directory in (("here", str(station.home)), ("there", "/elsewhere")):
        put(store_file(station.environ), asked_now(name, directory))
    told = said(station.run("flush", "--json"))
    assert told["jobs"]["delivered"] == 2 * JOBS
    with station.ledger() as db:
        assert {row["name"] for row in db.execute("select name from session")} == {export(SIMPLE)["root"], "ses_here"}


def test_what_cannot_be_read_is_shown_and_is_not_done(station: Station) -> None:
    with hook(replace(station, variables={VARIABLE: "notice.noted"})) as process:
        process.show(export(SIMPLE), directory=str(station.home))
        process.process.wait(60)
    with station.ledger() as db:
        (row,) = db.execute("select store, session from notice").fetchall()
        notices.note_wait(db, row["store"], [row["session"]], "OpenCode's store cannot be read")
    store_file(station.environ).write_bytes(b"no database at all" * 1_000)
    done = station.run("flush")
    assert done.returncode == 1
    assert "unread: 1 session" in done.stdout


@pytest.mark.parametrize("was_captured", [True, False])
def test_a_run_is_sent_however_late_its_hook_starts(station: Station, *, was_captured: bool) -> None:
    if was_captured:
        capture(station, str(station.home))
        assert station.run("flush").returncode == 0
    with hook(station) as process:
        process.process.send_signal(signal.SIGSTOP)
        process.show(asked_now("late", str(station.home)), directory=str(station.home))
        process.close_store()
        assert process.process.stdin is not None
        process.process.stdin.close()
        # In a folder of which nothing is known only the hook can say that it is captured.
        starting = threading.Timer(3, process.process.send_signal, [signal.SIGCONT])
        if not was_captured:
            starting.start()
        told = said(station.run("flush", "--expect-some", "--json", timeout_s=600))
        assert (told["captured_here"], told["unread"]) == (True, [])
        assert told["jobs"]["delivered"] == JOBS * (1 + was_captured)
        process.process.send_signal(signal.SIGCONT)
        assert process.process.wait(60) == 0
    assert station.delivered(JOBS * (1 + was_captured))


def test_what_a_hook_had_not_read_when_it_was_killed_is_read_when_it_is_gone(station: Station) -> None:
    capture(station, str(station.home))
    put(store_file(station.environ), asked_now("late", str(station.home)))
    another = Announced(station.spool / "hooks")
    another.say({"destination": 1, "sessions": ["ses_late"], "backlog": 1})

    def end() -> None:
        wait_until(lambda: station.counts().delivered == JOBS)  # it has looked into the store by then
        another.withdraw()

    ending = threading.Thread(target=end)
    ending.start()
    told = said(station.run("flush", "--json"))
    ending.join()
    assert (told["jobs"]["delivered"], told["unread"]) == (2 * JOBS, [])


def test_what_is_away_is_tried_once_and_told_of_with_what_to_do(station: Station) -> None:
    with nobody() as url:
        # Within half a minute it would be tried again.
        away = replace(station, endpoint=url, variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "15000"})
        capture(away, str(station.home))
        done = away.run("flush")
    assert done.returncode == 1
    assert "paused" in done.stdout
    assert f"opencode-helicone receiver --port {url.rpartition(':')[2]}" in done.stdout
    with station.ledger() as db:
        assert [row["pause_count"] for row in db.execute("select pause_count from destination")] == [1]


def test_what_comes_back_within_the_time_given_is_delivered(station: Station, receiver: Receiver) -> None:
    capture(station, str(station.home))
    receiver.fault({"status": 503, "times": 3})
    told = station.run("flush", "--timeout", "120")
    assert "is tried again until 120 s are over" in told.stderr
    assert (told.returncode, station.delivered(JOBS)) == (0, True)


def test_a_pause_from_before_is_tried_at_once_and_all_of_it_goes(station: Station) -> None:
    capture(station, str(station.home))
    with station.ledger() as db:
        later_ms = clock.now_ms() + 3_600_000
        flow.pause(db, 1, health="down", reason="503", count=9, probe_ms=later_ms, now_ms=clock.now_ms())
    assert said(station.run("flush", "--json"))["jobs"]["delivered"] == JOBS

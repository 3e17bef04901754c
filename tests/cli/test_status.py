"""`status` as a person meets it: one look says whether sessions arrive, and what to type if not."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.ledger import destinations, flow, folders, notices
from app.ledger.job import Version
from app.ledger.overview import LOOKED_AT_MAX, SessionCounts, last_delivery, session_counts
from app.runtime import clock
from app.runtime.liveness import Announced
from app.runtime.spool import Spool
from app.runtime.url import normalise
from app.sources.opencode.store import store_file
from tests.ledger.test_dead_letters import die
from tests.sources.opencode.test_store import built
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station
from tests.support.recorded import export
from tests.support.typed_commands import typed
from tests.system.test_cli import complaint, example, said, shape


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


@contextmanager
def bench_of(station: Station) -> Iterator[LedgerBench]:
    """The destination that the station's settings mean."""
    with station.ledger() as db:
        bench = LedgerBench(db)
        fingerprint = destinations.fingerprint(db, station.key)
        bench.destination = destinations.destination(db, normalise(station.endpoint), fingerprint, 1).id
        bench.now_ms = clock.now_ms()
        yield bench


@contextmanager
def at_work(station: Station, destination: int) -> Iterator[None]:
    worker = Announced(Spool(station.spool).workers)
    try:
        worker.say({"destination": destination, "automatic": True})
        yield
    finally:
        worker.withdraw()


def first(station: Station, *arguments: str) -> str:
    return typed(station, "status", *arguments).stdout.splitlines()[0]


def pause(bench: LedgerBench, health: Any, reason: str) -> None:
    probe_ms = bench.now_ms + 60_000
    flow.pause(bench.db, bench.destination, health=health, reason=reason, count=1, probe_ms=probe_ms, now_ms=1)


def nothing(_: LedgerBench) -> None:
    pass


def delivered(bench: LedgerBench) -> None:
    bench.put(version())
    bench.deliver(version())


def pending(bench: LedgerBench) -> None:
    bench.put(version())


def refused(bench: LedgerBench) -> None:
    pending(bench)
    pause(bench, "refused", "401: error Unauthorized")


def unfit(bench: LedgerBench) -> None:
    pending(bench)
    pause(bench, "refused", "not an answer of Helicone's worker")


def down(bench: LedgerBench) -> None:
    pending(bench)
    pause(bench, "down", "ConnectError: Connection refused")


def dead(bench: LedgerBench) -> None:
    die(bench, version())


def lose(bench: LedgerBench, reason: Any, wanted: Version) -> None:
    bench.put(wanted)
    bench.db.execute(
        "update job set state = 'dropped', drop_reason = ?, due_ms = null, finished_ms = 1, body_bytes = 0"
        " where key = ?",
        (reason, wanted.key),
    )


def loosely_made(bench: LedgerBench) -> None:
    """An export that was imported, which OpenCode's store does not have."""
    delivered(bench)
    lose(bench, "policy", version("t2"))


def too_old(bench: LedgerBench) -> None:
    delivered(bench)
    lose(bench, "age", version("t2"))
    lose(bench, "size", version("t3"))


def busy(bench: LedgerBench) -> None:
    pending(bench)
    pause(bench, "down", "429: Too Many Requests")


def elsewhere(bench: LedgerBench) -> None:
    delivered(bench)
    bench.destination = destinations.destination(bench.db, "http://127.0.0.1:8585", "abcdef0123456789", 1).id
    bench.put(version("t2"))


def without_key(bench: LedgerBench) -> None:
    delivered(bench)
    bench.destination = destinations.destination(bench.db, "", "", 1).id
    bench.put(version("t2"))


def held(bench: LedgerBench) -> None:
    pending(bench)
    bench.db.execute("update job set hold_reason = 'the export mode is off in its folder'")


def held_folder(bench: LedgerBench) -> None:
    delivered(bench)
    folders.remember_folder(bench.db, "one", bench.destination, {"held": "opencode.json line 3: it is not JSON"}, 1)


def unread(bench: LedgerBench) -> None:
    delivered(bench)
    notices.note_notice(bench.db, "store", "ses_1", "here", 1)
    notices.note_wait(bench.db, "store", ["ses_1"], "OpenCode's store is not there")


VERDICTS: dict[str, tuple[Callable[[LedgerBench], None], str, str]] = {
    "nothing yet": (nothing, "ok: nothing was captured yet", "doctor"),
    "all is delivered": (delivered, "ok: all that was captured is delivered", ""),
    "no worker": (pending, "waiting: 1 job waits, and no worker runs", "flush"),
    "no address for what is sent": (
        unfit,
        "problem: Helicone refuses what is sent: not an answer of Helicone's worker; 1 job waits",
        "doctor",
    ),
    "down": (
        down,
        "waiting: Helicone cannot be reached: ConnectError: Connection refused; 1 job waits",
        "receiver --port 9 in another terminal (if it is that receiver), then opencode-helicone flush",
    ),
    "busy": (busy, "waiting: Helicone takes nothing now: 429: Too Many Requests; 1 job waits", "flush"),
    "dead": (dead, "problem: 1 job dead", "dead list"),
    "made under looser settings": (
        loosely_made,
        "waiting: 1 job made under looser settings, dropped and not captured again yet",
        "dead list --dropped",
    ),
    "dropped for its age": (
        too_old,
        "ok: what was captured is delivered, but for 2 jobs dropped for age or size",
        "dead list --dropped",
    ),
    "elsewhere": (elsewhere, "waiting: 1 job waits for http://127.0.0.1:8585, another endpoint", "destination adopt 3"),
    "captured without a key": (without_key, "waiting: 1 job waits for any endpoint, captured", "destination adopt 3"),
    "held": (held, "problem: 1 job waits: the export mode is off in its folder", "doctor"),
    "held folder": (held_folder, "problem: 1 folder held back: opencode.json line 3: it is not JSON", "doctor"),
    "unread": (unread, "waiting: 1 session cannot be read: OpenCode's store is not there", "doctor"),
}


@pytest.mark.parametrize(("arrange", "line", "command"), VERDICTS.values(), ids=VERDICTS)
def test_the_first_line_is_the_verdict_and_the_second_what_to_type(
    station: Station, arrange: Callable[[LedgerBench], None], line: str, command: str
) -> None:
    with bench_of(station) as bench:
        arrange(bench)
    done = typed(station, "status")
    assert done.returncode == 0
    verdict, todo, *_ = done.stdout.splitlines()
    assert verdict.startswith(line)
    assert todo == f"  opencode-helicone {command}" if command else not todo.startswith(" ")
    assert typed(station, "status", "--check").returncode == int(not line.startswith("ok"))
    told = said(typed(station, "status", "--json", "--check"), int(not line.startswith("ok")))["verdict"]
    assert verdict.startswith(f"{told['level']}: {told['text']}")


REFUSED = "problem: Helicone refuses what is sent: 401: error Unauthorized; the key is from"


def test_a_key_that_is_refused_is_told_with_its_place_and_what_to_do_there(station: Station) -> None:
    with bench_of(station) as bench:
        refused(bench)
    verdict, todo, *_ = typed(station, "status").stdout.splitlines()
    assert verdict.startswith(f"{REFUSED} environment HELICONE_API_KEY; 1 job waits")
    assert todo == "  unset HELICONE_API_KEY (or set it right where OpenCode is started)"
    own = station.home / "config" / "opencode-helicone" / ".env"
    own.parent.mkdir(parents=True)
    own.write_text(f"HELICONE_API_KEY={station.key}\n")
    verdict, todo, *_ = typed(replace(station, variables={"HELICONE_API_KEY": ""}), "status").stdout.splitlines()
    assert verdict.startswith(f"{REFUSED} .env {own}; 1 job waits")
    assert todo == "  opencode-helicone doctor"


def test_what_a_worker_is_at_is_well_and_what_is_paused_is_tried_again_at_a_time(station: Station) -> None:
    with bench_of(station) as bench:
        pending(bench)
        with at_work(station, bench.destination):
            assert first(station) == "ok: 1 job being delivered"
            pause(bench, "down", "502: HTML")
            assert "; next try in " in first(station)
    assert "; no worker runs" in first(station)


def test_a_worker_that_is_refused_is_not_at_it(station: Station) -> None:
    with bench_of(station) as bench:
        elsewhere(bench)
        with at_work(station, bench.destination):
            assert first(station) == "ok: all that was captured is delivered"
            pause(bench, "refused", "401: error Unauthorized")
            verdict, todo, *_ = typed(station, "status").stdout.splitlines()
    assert verdict.startswith("waiting: 1 job waits for http://127.0.0.1:8585, another endpoint")
    assert verdict.endswith("refused there: 401: error Unauthorized")
    assert todo == f"  opencode-helicone destination adopt {bench.destination}"


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"HELICONE_API_KEY": ""}, "problem: no API key is set, so nothing is delivered"),
        ({"OPENCODE_HELICONE_ENABLE": "false"}, "problem: switched off: enable is false"),
        ({"OPENCODE_HELICONE_EXPORT_MODE": "off"}, "problem: switched off: exportMode is off"),
    ],
    ids=["no key", "enable", "export mode"],
)
def test_settings_that_let_nothing_leave_are_the_verdict(
    station: Station, variables: dict[str, str], line: str
) -> None:
    assert first(replace(station, variables=variables)).startswith(line)


def test_the_last_delivery_has_its_title_and_its_page(station: Station) -> None:
    store_file(station.environ).parent.mkdir(parents=True)
    wanted = export("a_simple")
    info = wanted["sessions"][0]["info"]
    info["title"] = "Fix the login page"
    built(store_file(station.environ), wanted)
    with bench_of(station) as bench:
        one = replace(version("x"), session=info["id"], root=info["id"], session_name="opencode: my shop", encoding=2)
        bench.put(one)
        bench.deliver(one)
        bench.now_ms -= 60_000
        elsewhere(bench)
    here = replace(station, variables={"HELICONE_DASHBOARD_URL": "http://127.0.0.1:3000/"})
    told, shown = said(typed(here, "status", "--json")), example("status")
    for key in ("last_delivery", "elsewhere", "verdict", "sessions"):
        assert shape(told[key]) == shape(shown[key])
    last = told["last_delivery"]
    assert (last["session"], last["title"]) == (info["id"], "Fix the login page")
    assert last["url"] == f"http://127.0.0.1:3000/sessions/opencode%3A%20my%20shop/{info['id']}"
    assert told["sessions"] == {"delivered": 2, "waiting": 1, "dead": 0, "dropped": 0}
    lines = typed(station, "status").stdout
    assert re.search(r'^last delivery: \d+ s ago \(\d\d:\d\d\) "Fix the login page"$', lines, re.MULTILINE)
    assert "/sessions/" not in lines  # where nobody says where a browser finds it


def test_a_session_that_the_store_has_no_more_goes_by_its_id(station: Station) -> None:
    with bench_of(station) as bench:
        delivered(bench)
    (line,) = (one for one in typed(station, "status").stdout.splitlines() if one.startswith("last delivery"))
    assert line.endswith(" ses_1")
    assert said(typed(station, "status", "--json"))["last_delivery"]["title"] == ""


def test_sessions_are_counted_once_each(station: Station) -> None:
    with bench_of(station) as bench:
        for session in ("ses_1", "ses_2", "ses_3"):
            bench.put(version("t1", session=session))
            bench.deliver(version("t1", session=session))
        bench.put(version("t2", session="ses_2"))
        bench.put(version("t2", session="ses_3"))
        die(bench, version("t3", session="ses_3"))
        lose(bench, "age", version("t1", session="ses_4"))
        lose(bench, "deleted", version("t1", session="ses_5"))
        assert session_counts(bench.db) == SessionCounts(delivered=2, waiting=1, dead=1, dropped=1)
    told = "sessions: 2 delivered, 1 waiting, 1 with dead jobs, 1 with dropped jobs"
    assert told in typed(station, "status").stdout


@pytest.mark.parametrize("state", ["waiting", "dead", "dropped"])
def test_where_not_all_that_waits_is_looked_at_nothing_is_said_to_be_delivered(station: Station, state: str) -> None:
    with bench_of(station) as bench:
        for number in range(LOOKED_AT_MAX):
            one = version("t1", session=f"ses_{number}")
            if state == "waiting":
                bench.put(one)
            elif state == "dead":
                die(bench, one)
            else:
                lose(bench, "age", one)
            if number == LOOKED_AT_MAX - 2:
                assert session_counts(bench.db).delivered == 0
        found = session_counts(bench.db)
        bench.put(version("t1", session="one more"))
        assert found.delivered is None
        assert getattr(found, state) == LOOKED_AT_MAX
    told = f"{LOOKED_AT_MAX} or more {'waiting' if state == 'waiting' else f'with {state} jobs'}"
    (line,) = (one for one in typed(station, "status").stdout.splitlines() if one.startswith("sessions: "))
    assert told in line
    assert "delivered" not in line


def test_the_last_delivery_is_found_behind_and_before_a_long_queue(station: Station) -> None:
    with bench_of(station) as bench:
        assert last_delivery(bench.db) is None
        delivered(bench)
        found = last_delivery(bench.db)
        assert found is not None
        # As a backlog of as many jobs leaves it: the newest ones wait.
        for number in range(3):
            bench.put(version(f"later {number}"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("app.ledger.overview.NEWEST", 2)
            assert last_delivery(bench.db) == found


def test_nothing_here_reads_all_jobs(station: Station) -> None:
    statements: list[str] = []
    with bench_of(station) as bench:
        delivered(bench)
        bench.db.set_trace_callback(statements.append)
        session_counts(bench.db)
        last_delivery(bench.db)
        bench.db.set_trace_callback(None)
        plans = [row[3] for one in statements for row in bench.db.execute(f"explain query plan {one}")]
    assert [plan for plan in plans if plan.startswith(("SCAN j", "SCAN job")) and "USING" not in plan] == []


def test_watch_goes_on_until_ctrl_c_and_stands_alone(station: Station) -> None:
    for other in ("--check", "--json"):
        done = typed(station, "status", "--watch", other)
        assert done.returncode == 2
        assert "excludes --check and --json" in done.stderr


@pytest.mark.slow
def test_watch_ends_with_130(station: Station) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "app", "status", "--watch"],
        env=station.environ,
        cwd=station.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ok: ")
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=300)
    assert (process.returncode, complaints.strip()) == (130, "")


@pytest.mark.slow
def test_on_a_narrow_terminal_no_line_is_wider_than_it(station: Station) -> None:
    with bench_of(station) as bench:
        refused(bench)
    outer, inner = pty.openpty()
    env = {**station.environ, "COLUMNS": "60", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-m", "app", "status"], env=env, cwd=station.home, stdout=inner, check=True)
    os.close(inner)
    shown = os.read(outer, 1 << 16).decode().replace("\r", "")
    os.close(outer)
    assert done.returncode == 0
    assert max(map(len, shown.splitlines())) <= 60
    assert "\x1b" not in shown
    assert " ".join(shown.split()).startswith(f"{REFUSED} environment HELICONE_API_KEY; 1 job")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(station: Station) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "app", "status"],
        env=station.environ,
        cwd=station.home,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_newer_ledger_is_named_in_one_line(station: Station) -> None:
    with station.ledger() as db:
        db.execute("pragma user_version = 99")
    assert "schema 99" in complaint(typed(station, "status"), 1)


def test_a_damaged_ledger_is_recovered_and_told_of(station: Station) -> None:
    with bench_of(station) as bench:
        delivered(bench)
    (station.spool / "ledger.db").write_text("no database" * 100)
    done = typed(station, "status")
    assert done.returncode == 0
    assert done.stdout.startswith("ok: ")

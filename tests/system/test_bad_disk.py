"""The hook on a disk that is full, read-only, closed or taken away: OpenCode notices nothing, and nothing is silent."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from app.ledger import destinations, incidents
from app.ledger import incidents as ledger_incidents
from app.runtime.liveness import present
from tests.support.processes import HookProcess, Station, hook, worker
from tests.support.recorded import export
from tests.support.servers import receiving
from tests.support.waiting import wait_until

NOWHERE = "http://127.0.0.1:9"
SIMPLE = "a_simple"
JOBS = 2
TRYING = "cannot write to the spool, trying again"
AGAIN = "the spool can be written again"


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, NOWHERE)


def refusals(station: Station) -> dict[str, int]:
    with station.ledger() as db:
        return {reason: count for reason, count, _ in incidents.refusals(db)}


def at_work(station: Station, process: HookProcess) -> None:
    """It has opened the spool, and has a log to write to."""
    process.raw(b"{")
    process.notice("ses_1", "busy")
    wait_until(lambda: "ses_1" in str([one.says for one in present(station.spool / "hooks")]))


# --- full


@dataclass(frozen=True, slots=True)
class Disk:
    """One that can be filled and emptied under a hook's feet."""

    fill: Callable[[HookProcess], None]
    empty: Callable[[HookProcess], None]
    error: str


@pytest.fixture(params=["file size limit", "tmpfs"])
def disk(request: pytest.FixtureRequest, station: Station) -> Iterator[Disk]:
    """By the limit of the process, which works everywhere, and as a small file system, where one can be mounted."""
    if request.param == "file size limit":
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

        def limit(soft: int) -> Callable[[HookProcess], None]:
            return lambda hook_: resource.prlimit(hook_.process.pid, resource.RLIMIT_FSIZE, (soft, hard)) and None

        yield Disk(limit(8_000), limit(hard), "disk I/O error")
        return
    station.spool.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(station.spool)]
    if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here; the limit of the process stands for it")
    rest = station.spool / "rest"

    def fill(_: HookProcess) -> None:
        with station.ledger() as db:
            db.execute("pragma wal_checkpoint(truncate)")  # what is there already is written over, and needs no room
        with rest.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass

    try:
        yield Disk(fill, lambda _: rest.unlink(), "database or disk is full")
    finally:
        subprocess.run(["umount", "-l", str(station.spool)], check=True)


def test_what_comes_while_the_disk_is_full_is_stored_when_it_is_not(station: Station, disk: Disk) -> None:
    with hook(station) as process:
        at_work(station, process)
        disk.fill(process)
        process.show(export(SIMPLE))
        process.raw(b"{")
        wait_until(lambda: TRYING in station.text("hook.log"))
        disk.empty(process)
        assert process.end() == 0
        assert station.counts().pending == JOBS
        assert refusals(station) == {"not JSON": 2}
        log = station.text("hook.log")
        assert f"{TRYING}: OperationalError: {disk.error}" in log
        assert AGAIN in log


def test_what_could_not_be_counted_on_a_full_disk_is_counted_later(station: Station) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with hook(station) as process:
        at_work(station, process)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (8_000, hard))
        process.raw(b"[]")  # refused at once, not tried again: only its count waits
        wait_until(lambda: "not an object" in station.text("hook.log"))
        assert "not an object" not in refusals(station)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        wait_until(lambda: refusals(station).get("not an object") == 1)
        assert process.end() == 0


# --- read-only and closed


def as_any_user() -> None:
    """Root may write anywhere: not without this capability. Others have none to lose."""
    if os.geteuid() == 0 and sys.platform == "linux":
        assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def test_a_directory_that_cannot_be_written_is_tried_again(station: Station) -> None:
    (station.spool / "logs").mkdir(parents=True)  # so that the log can be written, and the test sees what happens
    station.spool.chmod(0o500)
    with hook(station, preexec_fn=as_any_user) as process:
        process.show(export(SIMPLE))
        wait_until(lambda: TRYING in station.text("hook.log"))
        assert not (station.spool / "ledger.db").exists()
        station.spool.chmod(0o700)
        assert process.end() == 0
    assert station.counts().pending == JOBS
    assert AGAIN in station.text("hook.log")


def test_a_spool_that_may_not_be_used_is_named_where_status_looks_by_default(station: Station, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    usual = replace(station, variables={"OPENCODE_HELICONE_SPOOL_DIRECTORY": ""})
    with hook(usual) as process:
        for name in (SIMPLE, "b_tools"):
            process.show(export(name), options={"spoolDirectory": str(tmp_path / "link")})
        assert process.end() == 0
    status = json.loads(usual.run("status", "--json").stdout)
    assert [(one["reason"], one["count"]) for one in status["refused"]] == [("PlaceError", 2)]
    log = (Path(status["spool"]) / "logs" / "hook.log").read_text()
    assert f"refused a line: PlaceError: {tmp_path / 'link'} is a symbolic link" in log
    assert list((tmp_path / "real").iterdir()) == []


# --- taken away


def is_done(station: Station) -> bool:
    """Whether the hook has nothing in hand: a line that is not finished would be tried again in the new spool."""
    return [one.says.get("backlog") for one in present(station.spool / "hooks")] == [0]


def test_a_spool_that_is_removed_is_noticed_and_the_hook_goes_on_in_a_new_one(station: Station) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE), options={"maxRetries": 3})
        wait_until(lambda: station.counts().pending == JOBS and is_done(station))
        # In one step, as the hook may write there meanwhile.
        shutil.rmtree(station.spool.rename(station.home / "removed"))
        process.show(export("b_tools"), options={"maxRetries": 3})
        wait_until(lambda: station.counts().pending == JOBS)
        with station.ledger() as db:
            sessions = [row["name"] for row in db.execute("select name from session")]
            (one,) = destinations.destinations(db)
            incidents = [(what, count) for what, count, _ in ledger_incidents.incidents(db)]
        assert sessions == [export("b_tools")["root"]]
        assert one.delivery_options == {"confirm": "off"}
        assert incidents == [("jobs lost with a spool that was removed", JOBS)]
        assert f"{JOBS} job(s) that waited in it are lost; going on in a new one" in station.text("hook.log")
        assert len(present(station.spool / "hooks")) == 1
        assert process.end() == 0
    assert present(station.spool / "hooks") == []


def test_a_ledger_that_is_replaced_by_one_with_the_same_jobs_loses_none(station: Station, tmp_path: Path) -> None:
    with hook(station) as process:
        process.show(export(SIMPLE))
        wait_until(lambda: station.counts().pending == JOBS and is_done(station))
        with station.ledger() as db:
            db.execute("vacuum into ?", (str(tmp_path / "copy.db"),))
        (station.spool / "ledger.db").rename(station.spool / "ledger.db.aside")
        for suffix in ("-wal", "-shm"):
            (station.spool / f"ledger.db{suffix}").rename(station.spool / f"ledger.db.aside{suffix}")
        shutil.copy(tmp_path / "copy.db", station.spool / "ledger.db")
        process.show(export("b_tools"))
        assert process.end() == 0
    assert station.counts().pending == 2 * JOBS
    assert refusals(station) == {}


# --- the worker


def test_a_worker_on_a_full_disk_lives_says_so_once_and_delivers_when_it_can(station: Station, tmp_path: Path) -> None:
    with receiving(tmp_path / "receiver" / "store.db") as receiver:
        station = replace(station, endpoint=receiver.url)
        with worker(station) as process:
            wait_until(lambda: present(station.spool / "workers") and "starts" in station.text("worker.log"))
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8_000, hard))
            with hook(station) as capturing:
                capturing.show(export(SIMPLE))
                assert capturing.end() == 0
            wait_until(lambda: "disk I/O error" in station.text("worker.log"))
            assert station.counts().pending == JOBS
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            wait_until(lambda: station.delivered(JOBS))
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 0
        assert all(row.sends == 1 for row in receiver.rows())
    said = [line.partition(" ")[2] for line in station.text("worker.log").splitlines()]
    first = [line for line in said if "repeated" not in line]
    assert len(first) == len(set(first))
    assert len(said) < 20


def test_a_worker_whose_spool_is_removed_comes_back_in_a_new_one(station: Station) -> None:
    with worker(station) as process:
        wait_until(lambda: present(station.spool / "workers") and "starts" in station.text("worker.log"))
        shutil.rmtree(station.spool.rename(station.home / "removed"))
        # As the same process, which is what a process manager looks after.
        wait_until(lambda: present(station.spool / "workers"))
        assert process.poll() is None
        assert "ends: the spool was removed or replaced" in station.text("worker.log")


def test_what_huey_says_of_a_damaged_queue_is_a_few_lines_and_nothing_on_standard_error(station: Station) -> None:
    errors = station.home / "errors"
    with errors.open("wb") as output:
        command = [sys.executable, "-m", "app", "worker", "--automatic"]
        process = subprocess.Popen(command, env=station.environ, stdout=output, stderr=output)
    try:
        wait_until(lambda: "starts" in station.text("worker.log"))
        for path in station.spool.glob("queue.db*"):
            path.write_bytes(b"x" * path.stat().st_size)
        # Whether one of Huey's threads reads it before the poller has mended it is a matter of luck.
        wait_until(lambda: "the queue was damaged" in station.text("worker.log"))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    assert errors.read_bytes() == b""
    assert station.text("worker.log").count("Error reading from queue: DatabaseError") <= 2

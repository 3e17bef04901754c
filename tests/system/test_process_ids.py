"""No process id says who is alive: ids that recycle, and two pid namespaces on one spool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from app.capture.config import capture
from app.capture.enqueue import Place, enqueue
from app.capture.targets import target
from app.delivery.deliver import LEASE_MS
from app.ledger import claims, maintenance
from app.runtime import clock
from app.runtime.liveness import Announced, present, read_hooks, read_workers
from app.runtime.spool import Spool
from app.settings.lookup import unattended
from app.sources.opencode.store import store_file
from app.transcript.parse import parse
from app.worker import Worker
from tests.support.enqueuer import growing, name
from tests.support.lean_receiver import LeanReceiver, lean_receiver
from tests.support.processes import PROJECT, Station, let_leases_last, procfile_command
from tests.support.stores import put
from tests.support.waiting import wait_until

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
"""What runs in it sees itself as process 1, and ends with `unshare`."""
JOBS = 2
"""Of a session with one turn."""

PRESENT = (
    "import sys; from pathlib import Path; from app.runtime.liveness import present;"
    " print(len(present(Path(sys.argv[1]))))"
)


def stored(station: Station, session: int) -> None:
    settings = unattended(station.environ).load()
    with station.ledger() as db:
        place = Place(target(db, settings, clock.now_ms()).id, "")
        transcript = parse(growing(session, 1))
        enqueue(db, transcript, capture(settings, ()), place, now_ms=clock.now_ms(), wake=lambda _: None)


@pytest.fixture
def receiver() -> Iterator[LeanReceiver]:
    with lean_receiver() as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: LeanReceiver) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, receiver.url)


# --- recycled ids


def test_files_with_ids_of_living_processes_count_for_nothing(station: Station) -> None:
    stored(station, 0)
    worker = Worker(unattended(station.environ))
    ids = (1, os.getpid(), os.getppid())
    try:
        for folder in (worker.spool.hooks, worker.spool.workers):
            folder.mkdir(exist_ok=True)
            for pid in ids:
                # As the name, and as what it says: this very process, its parent, and the one that always lives.
                (folder / f"{pid}.lock").write_text(json.dumps({"pid": pid, "destination": worker.target.id}) + "\n")
        (station.spool / f"worker-{worker.target.id}.lock").write_text(str(os.getpid()))
        key = worker.db.execute("select key from job order by id limit 1").fetchone()[0]
        assert claims.claim(
            worker.db, worker.target.id, key, worker=str(os.getpid()), now_ms=clock.now_ms(), lease_ms=LEASE_MS
        )
        assert (read_hooks(worker.spool), read_workers(worker.spool)) == ((), ())
        worker.poller._reclaim(worker.db, clock.now_ms())
        assert maintenance.leasing_workers(worker.db) == []
        assert worker.lifetime.lock.take(), "nobody is the automatic worker"
    finally:
        worker.close()
    assert not list(worker.spool.hooks.iterdir())
    assert not list(worker.spool.workers.iterdir())


def test_a_living_process_counts_whatever_id_it_says(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    announced = Announced(tmp_path)
    announced.say({"pid": gone.pid})
    assert [one.name for one in present(tmp_path)] == [announced.name]
    announced.withdraw()


# --- two namespaces


def why_no_namespace() -> str | None:
    """Why none can be made here."""
    if shutil.which(NAMESPACE[0]) is None:
        return "unshare is not installed"
    done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, timeout=300, check=False)
    return None if done.returncode == 0 else f"no pid namespace can be made: {done.stderr.strip()}"


@contextmanager
def started(station: Station, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with (station.home / "output.log").open("ab") as output:
        process = subprocess.Popen(command, env=station.environ, cwd=station.home, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait(300)


def show_through_a_hook_of_its_own(station: Station, session: int) -> None:
    """A hook in a namespace, that may start a worker: it gets notice of a session, and ends."""
    command = [*NAMESPACE, sys.executable, "-I", "-m", "app", "hook"]
    automatic = Station(station.home, station.endpoint, station.key, {"OPENCODE_HELICONE_WORKER": "auto"})
    put(store_file(station.environ), growing(session, 1))
    notice = {"v": 2, "n": 1, "type": "notice", "session": name(session), "why": "idle", "directory": PROJECT}
    said = json.dumps({**notice, "options": {}}).encode() + b"\n"
    subprocess.run(command, env=automatic.environ, input=said, stdout=subprocess.DEVNULL, timeout=300, check=True)


def present_inside(station: Station) -> int:
    """How many workers a process in a namespace sees."""
    command = [*NAMESPACE, sys.executable, "-c", PRESENT, str(station.spool / "workers")]
    return int(subprocess.run(command, capture_output=True, timeout=300, check=True).stdout)


def posting(receiver: LeanReceiver, known: Sequence[str]) -> list[str]:
    """Ids of records that are on their way; a sender that was killed is not noticed."""
    return [request_id for request_id in receiver.under_way.values() if request_id not in known]


def kill_in_its_post(station: Station, worker: subprocess.Popen[bytes]) -> None:
    """Who is left takes its job over, long before the lease ends, and left it alone before."""
    delivered = station.counts().delivered
    with station.ledger() as db:
        assert [row["kills"] for row in db.execute("select kills from job where lease_until_ms is not null")] == [0]
    let_leases_last(station)
    worker.send_signal(signal.SIGKILL)
    worker.wait(300)
    wait_until(lambda: station.delivered(delivered + JOBS))


def test_workers_of_two_namespaces_see_each_other_and_take_over_only_what_a_dead_one_held(
    station: Station, receiver: LeanReceiver
) -> None:
    if reason := why_no_namespace():
        pytest.skip(reason)
    slow, fast = (30.0, 30.0), (0.0, 0.0)
    inside, outside = [*NAMESPACE, *procfile_command()], procfile_command()
    with ExitStack() as stack:
        first = stack.enter_context(started(station, outside))
        wait_until(lambda: len(present(station.spool / "workers")) == 1)

        receiver.usual_s = slow
        show_through_a_hook_of_its_own(station, 0)
        wait_until(lambda: posting(receiver, ()))
        twice = posting(receiver, ())
        assert not list(station.spool.glob("*.starting")), "the hook saw the worker outside, and started none"
        receiver.usual_s = fast

        second = stack.enter_context(started(station, inside))
        wait_until(lambda: len(present(station.spool / "workers")) == 2)
        assert present_inside(station) == len(read_workers(Spool(station.spool))) == 2
        stored(station, 1)
        wait_until(lambda: station.counts().delivered == JOBS)
        kill_in_its_post(station, first)

        receiver.usual_s = slow
        stored(station, 2)
        wait_until(lambda: posting(receiver, twice))
        twice += posting(receiver, twice)
        receiver.usual_s = fast
        stack.enter_context(started(station, outside))
        wait_until(lambda: len(present(station.spool / "workers")) == 2)
        stored(station, 3)
        wait_until(lambda: station.counts().delivered == 3 * JOBS)
        kill_in_its_post(station, second)

        assert station.delivered(4 * JOBS)
        assert len(present(station.spool / "workers")) == 1
    sent = receiver.times_sent()
    assert {request_id for request_id, times in sent.items() if times > 1} == set(twice)
    assert [sent[request_id] for request_id in twice] == [2, 2]
    with station.ledger() as db:
        assert db.execute("select sum(kills) from job").fetchone()[0] == 2

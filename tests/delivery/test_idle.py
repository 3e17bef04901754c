"""What a worker does not do while nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.delivery.confirm import Allowance
from app.queue import Queue
from app.runtime import clock
from app.settings.lookup import Sources
from app.worker import CONFIRM_MS, CONFIRM_MS_MAX, CONSUMER, SCHEDULE_S, SIGNAL_S_MAX, Worker
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Worker]:
    station = Station(tmp_path, "http://127.0.0.1:9", variables={"OPENCODE_HELICONE_CONFIRM": "on"})
    with closing(Worker(Sources(station.environ, tmp_path, tmp_path))) as made:
        made.announce()
        made.huey.create_consumer(**CONSUMER)
        made.poll()
        yield made


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the worker looks at."""
    seen: list[str] = []
    for kind, name in ((Sources, "basis"), (Queue, "waiting")):
        monkeypatch.setattr(kind, name, _noting(seen, name, getattr(kind, name)))
    return seen


def _noting(seen: list[str], name: str, theirs: Callable[[object], object]) -> Callable[[object], object]:
    def look(self: object) -> object:
        seen.append(name)
        return theirs(self)

    return look


def bench_of(made: Worker) -> LedgerBench:
    bench = LedgerBench(made.db)
    bench.destination, bench.now_ms = made.target.id, clock.now_ms()
    return bench


def test_settings_and_queue_are_looked_at_while_something_waits(idle: Worker, looks: list[str]) -> None:
    idle.poll()
    assert looks == []
    bench_of(idle).put(version("t1"))
    idle.poll()
    assert {*looks} == {"basis", "waiting"}


@pytest.mark.parametrize(("state", "reason"), [("dead", None), ("dropped", "policy")])
def test_settings_are_looked_at_for_what_they_bind(
    idle: Worker, looks: list[str], state: str, reason: str | None
) -> None:
    bench_of(idle).put(version("t1"))
    idle.db.execute(
        "update job set state = ?, drop_reason = ?, due_ms = null, finished_ms = 1, body_bytes = 0", (state, reason)
    )
    looks.clear()
    idle.poll()
    assert {*looks} == {"basis"}


def test_what_is_to_be_read_back_is_looked_for_as_soon_as_it_can_be_due(idle: Worker) -> None:
    idle._allowance = Allowance(0, 0, clock.now_ms())
    assert idle._confirm() == CONFIRM_MS_MAX
    assert min(idle._traits.looks_ms(None, 0)) >= CONFIRM_MS_MAX
    bench = bench_of(idle)
    bench.put(version("t1"))
    bench.deliver(version("t1"))
    idle.db.execute("update job set confirm_ms = finished_ms")
    assert idle._confirm() == CONFIRM_MS


def test_huey_does_little_beside_its_threads(idle: Worker) -> None:
    waits_s: list[float] = []

    def wait(timeout: float) -> bool:
        waits_s.append(timeout)
        return False

    idle.huey.consumer.stop_flag = SimpleNamespace(wait=wait, is_set=lambda: False)
    idle.huey.consumer.loop()
    assert waits_s == [SIGNAL_S_MAX]
    assert idle.huey.consumer.scheduler_interval == SCHEDULE_S

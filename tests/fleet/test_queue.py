"""Wakes by a real server: heard by one connection of a process, asked for when something was rung and not before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest

from app.database.postgres import PostgresLedger
from app.fleet.queue import CentralQueue
from tests.support.postgres import Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_server: Server) -> str:
    with closing(postgres_server.emptied()) as db, closing(CentralQueue(postgres_server.url)) as queue:
        queue.make_tables(db)
    return postgres_server.url


@contextmanager
def listening(queue: CentralQueue, url: str) -> Iterator[None]:
    stop = threading.Event()
    with closing(PostgresLedger(url)) as db:
        thread = threading.Thread(target=queue.listen, args=(db, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(20)


@contextmanager
def consuming(url: str, threads: int = 2) -> Iterator[list[tuple[int, str]]]:
    """A process's threads, without Huey's consumer: what they were woken for."""
    answered: list[tuple[int, str]] = []
    stop = threading.Event()

    def answer(destination_id: int, key: str) -> None:
        answered.append((destination_id, key))

    def work() -> None:
        while not stop.is_set():
            task = queue.huey.dequeue()
            if task is not None:
                queue.huey.execute(task)

    with closing(CentralQueue(url, answer)) as queue, listening(queue, url):
        started = [threading.Thread(target=work) for _ in range(threads)]
        for thread in started:
            thread.start()
        try:
            yield answered
        finally:
            stop.set()
            for thread in started:
                thread.join(20)


def test_each_wake_is_answered_once_by_one_of_all_processes(url: str) -> None:
    jobs = [(n % 3, f"key {n}", n % 2 == 0) for n in range(40)]
    with consuming(url) as first, consuming(url) as second, closing(CentralQueue(url)) as waker:
        waker.wake(jobs)
        wait_until(lambda: len(first) + len(second) >= len(jobs))
        assert sorted(first + second) == sorted((destination, key) for destination, key, _ in jobs)


def test_what_is_live_goes_before_history(url: str) -> None:
    with closing(CentralQueue(url)) as waker:
        waker.wake([(1, "old", True), (1, "new", False)])
        with consuming(url, threads=1) as answered:
            wait_until(lambda: len(answered) == 2)
            assert answered == [(1, "new"), (1, "old")]


def test_an_idle_thread_asks_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(CentralQueue(url)) as queue:
        assert queue.huey.dequeue() is None  # nobody knows yet
        asked = counted(monkeypatch, queue)
        assert queue.huey.dequeue() is None
        assert asked() == 0
        queue._storage.ring(1)
        assert queue.huey.dequeue() is None
        assert asked() == 1


def counted(monkeypatch: pytest.MonkeyPatch, queue: CentralQueue) -> Callable[[], int]:
    calls: list[int] = []
    real = queue._storage._dequeue

    def look() -> bytes | None:
        calls.append(1)
        found: bytes | None = real()
        return found

    monkeypatch.setattr(queue._storage, "_dequeue", look)
    return lambda: len(calls)


def test_what_was_woken_and_not_answered_is_not_woken_again(url: str) -> None:
    with closing(CentralQueue(url)) as queue:
        queue.wake([(1, "a", False), (2, "b", False)])
        assert queue.woken(1) == {"a"}
        assert queue.woken(2) == {"b"}


def test_a_server_that_is_away_loses_the_wake_and_nothing_else() -> None:
    with Server() as server:
        with closing(server.emptied()) as db, closing(CentralQueue(server.url)) as queue:
            queue.make_tables(db)
            server.stop("immediate")
            queue.wake([(1, "a", False)])
            assert queue.huey.dequeue() is None  # and Huey has nothing to say of it, for each thread
            server.start()
            queue.wake([(1, "b", False)])
        with psycopg.connect(server.url) as db:
            assert db.execute("select count(*) from huey_task").fetchone() == (1,)


def test_one_destination_does_not_keep_another_waiting(url: str) -> None:
    with closing(CentralQueue(url)) as waker:
        waker.wake([(1, f"key {n}", False) for n in range(50)])
        waker.wake([(2, "the other's", False)])
        waker.wake([(2, "the other's second", False)])
        with consuming(url, threads=1) as answered:
            wait_until(lambda: len(answered) == 52)
        assert {answered.index((2, "the other's")), answered.index((2, "the other's second"))} <= set(range(4))


def test_a_full_queue_has_room_for_the_first_of_another_destination(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.fleet.queue.WAKES_MAX", 20)
    with closing(CentralQueue(url)) as waker:
        waker.wake([(1, f"key {n}", False) for n in range(30)])
        waker.wake([(1, "one more", False)])
        waker.wake([(2, "the other's", False)])
        assert waker._storage.queue_size() == 31
        with consuming(url, threads=1) as answered:
            wait_until(lambda: len(answered) == 31)
        assert (2, "the other's") in answered[:2]


def test_history_goes_behind_all_that_is_live(url: str) -> None:
    with closing(CentralQueue(url)) as waker:
        waker.wake([(2, "old", True), *((1, f"key {n}", False) for n in range(1_100))])
        last = waker._storage.enqueued_items()[-1]
        assert b"old" in last


def test_what_others_answer_is_forgotten(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An intake wakes for every log there is, and hears of none again."""
    with closing(CentralQueue(url)) as waker:
        waker.wake([(1, f"key {n}", False) for n in range(10)])
        monkeypatch.setattr("app.fleet.queue.AGAIN_S", 0.0)
        waker.wake([(1, "key", False)])
        assert len(waker._woken_s) == 1

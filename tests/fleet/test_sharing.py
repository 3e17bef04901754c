"""Threads of one process, shared among destinations."""

from __future__ import annotations

from app.fleet.sharing import SharedThreads


def shared(threads: int) -> SharedThreads:
    made = SharedThreads()
    for _ in range(threads):
        made.join()
    return made


def take(threads: SharedThreads, destination_id: int, key: str) -> bool:
    return threads.take(destination_id, key, is_only_one=False)


def next_of(threads: SharedThreads, destination_id: int) -> str | None:
    """What a thread goes on with that is done there."""
    threads.give_back(destination_id)
    return threads.take_again(destination_id, is_only_one=False)


def test_no_destination_has_more_threads_than_are_free_and_who_was_passed_over_is_next() -> None:
    threads = shared(6)
    assert [take(threads, 1, key) for key in "abcd"] == [True, True, True, False]
    assert [take(threads, 2, key) for key in "abc"] == [True, True, False]
    assert take(threads, 3, "a")
    assert next_of(threads, 1) is None  # it has two, and one is free
    assert threads.is_waited_for(1)
    assert next_of(threads, 2) == "c"
    assert next_of(threads, 1) == "d"
    assert not threads.is_waited_for(1)
    assert [next_of(threads, 1) for _ in range(2)] == [None, None]


def test_the_only_destination_has_all() -> None:
    threads = shared(3)
    assert all(threads.take(1, key, is_only_one=True) for key in "abc")
    assert [threads.leave() for _ in range(3)] == [2, 1, 0]

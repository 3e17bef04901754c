"""A thread of the worker outlives whatever goes wrong in one of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

from app.delivery.loop import Loop


def run(*steps: int | Exception | None, stop: Event | None = None) -> tuple[int, list[str]]:
    """How many steps were taken, and of what the loop told; its waits are none."""
    told: list[str] = []
    left: Iterator[int | Exception | None] = iter(steps)
    taken = 0

    def step() -> int | None:
        nonlocal taken
        taken += 1
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    Loop("poller", 0, step).run(stop or Event(), lambda name, error: told.append(f"{name}: {error}"))
    return taken, told


def test_it_goes_on_until_a_step_has_nothing_left_to_do() -> None:
    assert run(0, 0, None) == (3, [])


def test_a_step_that_fails_is_told_and_the_next_one_is_taken() -> None:
    assert run(ValueError("one"), OSError("two"), 0, None) == (4, ["poller: one", "poller: two"])


def test_after_its_end_it_takes_no_step() -> None:
    stop = Event()
    stop.set()
    assert run(0, stop=stop) == (0, [])


def test_what_fails_because_all_is_being_closed_is_not_told() -> None:
    stop = Event()
    told: list[str] = []

    def step() -> int:
        stop.set()
        raise ValueError("closed")

    Loop("poller", 0, step).run(stop, lambda name, _: told.append(name))
    assert told == []

"""Carries out a recall: queues it and has it delivered, and again what was in flight meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from app.recall.expected import ExpectedContent
from app.recall.recall import Recall
from app.recall.rewrite import Problem, Refusal
from app.runtime import clock


@dataclass(slots=True)
class Overwritten:
    """What became of it so far."""

    expected: list[ExpectedContent] = field(default_factory=list)
    """What is to be seen at Helicone."""
    problems: list[Problem] = field(default_factory=list)


def overwrite(
    recall: Recall,
    turns: Mapping[str, Collection[str]],
    wake: Callable[[str], None],
    deliver: Callable[[float], bool],
    end_s: float,
) -> Overwritten:
    """Queue these turns, by session, and have them delivered, until `end_s` (monotonic).

    `deliver` is given a time in seconds, and says whether nothing is left. Raises what it and `Recall.plan` do.
    """
    done = Overwritten()
    left = turns
    while True:
        in_flight: dict[str, Collection[str]] = {}
        for session, wanted in left.items():
            plan = recall.plan(session, wanted)
            queued = recall.queue(plan, clock.now_ms(), wake)
            done.problems += plan.problems
            done.expected += queued.expected
            if queued.in_flight:
                in_flight[session] = queued.in_flight
        left = in_flight
        if not deliver(max(0.0, end_s - time.monotonic())) or not left or time.monotonic() >= end_s:
            break
    for session, names in left.items():
        done.problems += (Problem(Refusal.IN_FLIGHT, session, name) for name in names)
    for session, names in turns.items():
        done.problems += recall.undelivered(session, names)
    return done

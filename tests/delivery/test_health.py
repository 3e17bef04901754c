"""Whose fault a failure is: the table at the head of `app/delivery/health.py`, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.backoff import RetryPolicy
from app.delivery.health import DeadLetter, Pause, Release, RetryLater, Situation, decide
from app.exporters.outcome import Outcome

POLICY = RetryPolicy.of(max_retries=3, base_ms=1_000)
CALM = Situation(
    consecutive_failures=0,
    failures=0,
    is_probe=False,
    pause_count=0,
    is_paused=False,
    peers="succeed",
    is_alone=False,
)
UNREACHED = Outcome("wait", "ConnectError")
LIMITED = Outcome("wait", "429: empty body", 429, 20_000)
BASELESS = Outcome("wait", "401: connect ECONNREFUSED", 401)
BROKEN = Outcome("retry", "500: empty body", 500)
AWAY = Outcome("retry", "503: HTML", 503)
REFUSED = Outcome("refused", "401: error", 401)
MALFORMED = Outcome("permanent", "400: error", 400)


def at(**facts: object) -> Situation:
    return replace(CALM, **facts)  # type: ignore[arg-type]  # each test names fields of it


@pytest.mark.parametrize(
    ("outcome", "situation", "action"),
    [
        pytest.param(MALFORMED, at(is_paused=True), DeadLetter("400: error"), id="permanent is dead"),
        pytest.param(REFUSED, CALM, Pause("refused", 1, 1_000, is_charged=False), id="refused pauses at once"),
        pytest.param(LIMITED, CALM, Pause("down", 1, 20_000, is_charged=False), id="429 pauses as long as asked"),
        pytest.param(
            BASELESS, CALM, Pause("down", 1, 1_000, is_charged=False), id="its database is away, others succeed"
        ),
        pytest.param(UNREACHED, CALM, RetryLater(1_000, is_charged=False), id="no answer, others succeed"),
        pytest.param(BROKEN, CALM, RetryLater(1_000, is_charged=True), id="5xx, others succeed"),
        pytest.param(BROKEN, at(peers="none"), RetryLater(1_000, is_charged=False), id="5xx, nobody succeeded"),
        pytest.param(
            BROKEN,
            at(failures=3),
            DeadLetter("500: empty body (after 3 retries)"),
            id="5xx, retries used up",
        ),
        pytest.param(BROKEN, at(peers="fail"), Pause("down", 1, 1_000, is_charged=False), id="5xx of a second"),
        pytest.param(
            UNREACHED,
            at(peers="fail"),
            Pause("down", 1, 1_000, is_charged=False),
            id="no answer to a second",
        ),
        pytest.param(
            BROKEN,
            at(failures=3, peers="fail"),
            Pause("down", 1, 1_000, is_charged=False),
            id="used up, but a second fails too",
        ),
        pytest.param(
            UNREACHED,
            at(is_alone=True),
            Pause("down", 1, 1_000, is_charged=False),
            id="no answer to the only one",
        ),
        pytest.param(
            BROKEN,
            at(is_alone=True, peers="none"),
            RetryLater(1_000, is_charged=False),
            id="5xx of the only one",
        ),
        pytest.param(
            BROKEN,
            at(consecutive_failures=9, is_alone=True, peers="none"),
            RetryLater(300_000, is_charged=True),
            id="5xx of the only one at full backoff",
        ),
        pytest.param(
            AWAY,
            at(failures=3),
            DeadLetter("503: HTML (after 3 retries)"),
            id="503, others succeed, used up",
        ),
        pytest.param(
            AWAY,
            at(consecutive_failures=9, failures=3, is_alone=True, peers="none"),
            RetryLater(300_000, is_charged=False),
            id="503 of the only one at full backoff",
        ),
        pytest.param(
            BROKEN,
            at(is_probe=True, pause_count=9, failures=3, is_alone=True, is_paused=True),
            DeadLetter("500: empty body (after 3 retries)"),
            id="the only one, as a probe, used up",
        ),
        pytest.param(
            BROKEN,
            at(is_probe=True, pause_count=4, failures=3, is_paused=True),
            Pause("down", 5, 16_000, is_charged=False),
            id="5xx on a probe, others wait",
        ),
        pytest.param(UNREACHED, at(is_paused=True), Release(), id="in flight when another paused it"),
        pytest.param(BROKEN, at(is_paused=True), Release(), id="the same with a 5xx"),
        pytest.param(BROKEN, at(is_paused=True, peers="fail"), Release(), id="the same, and another fails"),
    ],
)
def test_table(outcome: Outcome, situation: Situation, action: object) -> None:
    assert decide(outcome, situation, POLICY, 1.0) == action


SITUATIONS = st.builds(
    Situation,
    consecutive_failures=st.integers(0, 30),
    failures=st.integers(0, 4),
    is_probe=st.booleans(),
    pause_count=st.integers(0, 30),
    is_paused=st.booleans(),
    peers=st.sampled_from(["succeed", "fail", "none"]),
    is_alone=st.booleans(),
)
DICE = st.floats(0, 1)


@given(SITUATIONS, DICE, st.sampled_from([UNREACHED, LIMITED, REFUSED]))
def test_what_is_no_5xx_never_charges_and_never_kills(situation: Situation, dice: float, outcome: Outcome) -> None:
    action = decide(outcome, situation, POLICY, dice)
    assert not isinstance(action, DeadLetter)
    assert not getattr(action, "is_charged", False)


@given(SITUATIONS, DICE)
def test_job_is_held_responsible_only_if_others_succeed_or_it_is_the_only_one(
    situation: Situation, dice: float
) -> None:
    action = decide(BROKEN, situation, POLICY, dice)
    if isinstance(action, DeadLetter) or getattr(action, "is_charged", False):
        assert situation.is_alone or situation.peers == "succeed"


@given(SITUATIONS, DICE, st.sampled_from([UNREACHED, BROKEN, REFUSED]))
def test_no_delay_is_longer_than_five_minutes(situation: Situation, dice: float, outcome: Outcome) -> None:
    assert getattr(decide(outcome, situation, POLICY, dice), "delay_ms", 0) <= 300_000

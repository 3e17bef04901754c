"""Whose fault a failure is: the table at the head of `app/delivery/health.py`, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.backoff import Policy
from app.delivery.health import Bury, GiveBack, Pause, SetBack, Situation, judge
from app.exporters.outcome import Outcome

POLICY = Policy.of(max_retries=3, base_ms=1_000)
CALM = Situation(
    setbacks=0,
    failures=0,
    is_probe=False,
    is_another=False,
    pause_count=0,
    is_paused=False,
    others_passed=True,
    other_is_suspect=False,
    is_alone=False,
)
UNREACHED = Outcome("wait", "ConnectError")
LIMITED = Outcome("wait", "429: empty body", 429, 20_000)
BROKEN = Outcome("retry", "500: empty body", 500)
AWAY = Outcome("retry", "503: HTML", 503)
REFUSED = Outcome("refused", "401: error", 401)
MALFORMED = Outcome("permanent", "400: error", 400)


def at(**facts: object) -> Situation:
    return replace(CALM, **facts)  # type: ignore[arg-type]  # each test names fields of it


@pytest.mark.parametrize(
    ("outcome", "situation", "verdict"),
    [
        pytest.param(MALFORMED, at(is_paused=True), Bury("400: error"), id="permanent is dead"),
        pytest.param(REFUSED, CALM, Pause("refused", 1, 1_000, charged=False), id="refused pauses at once"),
        pytest.param(LIMITED, CALM, Pause("down", 1, 20_000, charged=False), id="429 pauses as long as asked"),
        pytest.param(UNREACHED, CALM, SetBack(1_000, charged=False), id="no answer, others pass"),
        pytest.param(BROKEN, CALM, SetBack(1_000, charged=True), id="5xx, others pass"),
        pytest.param(BROKEN, at(others_passed=False), SetBack(1_000, charged=False), id="5xx, nobody passed"),
        pytest.param(BROKEN, at(failures=3), Bury("500: empty body (after 3 retries)"), id="5xx, retries used up"),
        pytest.param(BROKEN, at(other_is_suspect=True), Pause("down", 1, 1_000, charged=False), id="5xx of a second"),
        pytest.param(
            UNREACHED, at(other_is_suspect=True), Pause("down", 1, 1_000, charged=False), id="no answer to a second"
        ),
        pytest.param(
            BROKEN,
            at(failures=3, other_is_suspect=True),
            Pause("down", 1, 1_000, charged=False),
            id="used up, but a second fails too",
        ),
        pytest.param(
            UNREACHED, at(is_alone=True), Pause("down", 1, 1_000, charged=False), id="no answer to the only one"
        ),
        pytest.param(
            BROKEN, at(is_alone=True, others_passed=False), SetBack(1_000, charged=False), id="5xx of the only one"
        ),
        pytest.param(
            BROKEN,
            at(is_alone=True, others_passed=False, setbacks=9),
            SetBack(300_000, charged=True),
            id="5xx of the only one at full backoff",
        ),
        pytest.param(AWAY, at(failures=3), Bury("503: HTML (after 3 retries)"), id="503, others pass, used up"),
        pytest.param(
            AWAY,
            at(is_alone=True, others_passed=False, setbacks=9, failures=3),
            SetBack(300_000, charged=False),
            id="503 of the only one at full backoff",
        ),
        pytest.param(
            BROKEN,
            at(is_alone=True, is_probe=True, is_paused=True, pause_count=9, failures=3),
            Bury("500: empty body (after 3 retries)"),
            id="the only one, as a probe, used up",
        ),
        pytest.param(
            BROKEN,
            at(is_probe=True, is_paused=True, pause_count=4, failures=3),
            Pause("down", 5, 16_000, charged=False),
            id="5xx on a probe, others wait",
        ),
        pytest.param(
            BROKEN,
            at(is_probe=True, is_paused=True, pause_count=3),
            Pause("down", 4, 1_000, charged=False, asks_another=True),
            id="the fourth failed probe: a second opinion comes soon",
        ),
        pytest.param(
            UNREACHED,
            at(is_probe=True, is_another=True, is_paused=True, pause_count=4),
            Pause("down", 4, 8_000, charged=False),
            id="a second opinion that fails too is no probe more",
        ),
        pytest.param(UNREACHED, at(is_paused=True), GiveBack(), id="in flight when another paused it"),
        pytest.param(BROKEN, at(is_paused=True), GiveBack(), id="the same with a 5xx"),
        pytest.param(BROKEN, at(is_paused=True, other_is_suspect=True), GiveBack(), id="the same, another suspected"),
    ],
)
def test_table(outcome: Outcome, situation: Situation, verdict: object) -> None:
    assert judge(outcome, situation, POLICY, 1.0) == verdict


SITUATIONS = st.builds(
    Situation,
    setbacks=st.integers(0, 30),
    failures=st.integers(0, 4),
    is_probe=st.booleans(),
    is_another=st.booleans(),
    pause_count=st.integers(0, 30),
    is_paused=st.booleans(),
    others_passed=st.booleans(),
    other_is_suspect=st.booleans(),
    is_alone=st.booleans(),
)
DICE = st.floats(0, 1)


@given(SITUATIONS, DICE, st.sampled_from([UNREACHED, LIMITED, REFUSED]))
def test_what_is_no_5xx_never_charges_and_never_kills(situation: Situation, dice: float, outcome: Outcome) -> None:
    verdict = judge(outcome, situation, POLICY, dice)
    assert not isinstance(verdict, Bury)
    assert not getattr(verdict, "charged", False)


@given(SITUATIONS, DICE)
def test_job_is_held_responsible_only_if_another_passed_or_it_is_the_only_one(
    situation: Situation, dice: float
) -> None:
    verdict = judge(BROKEN, situation, POLICY, dice)
    if isinstance(verdict, Bury) or getattr(verdict, "charged", False):
        assert situation.is_alone or (situation.others_passed and not situation.other_is_suspect)


@given(SITUATIONS, DICE, st.sampled_from([UNREACHED, BROKEN, REFUSED]))
def test_no_delay_is_longer_than_five_minutes(situation: Situation, dice: float, outcome: Outcome) -> None:
    assert getattr(judge(outcome, situation, POLICY, dice), "delay_ms", 0) <= 300_000

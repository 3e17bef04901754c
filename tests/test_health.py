"""Whose fault a failure is: the table at the head of `app/health.py`, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.destination import Evidence
from app.health import DeadLetter, Pause, Release, RetryLater, judge
from app.ledger.job import Claim
from app.retry import Outcome, Policy

POLICY = Policy.of(max_retries=3, base_ms=1_000)
CLAIM = Claim(
    destination_id=1,
    job_id=1,
    turn_id=1,
    key="",
    session="",
    turn="",
    folder="",
    policy="",
    attempt=1,
    consecutive_failures=0,
    failures=0,
    is_probe=False,
    pause_count=0,
)
CALM = Evidence(is_paused=False, peers="succeed", is_alone=False)


UNREACHED = Outcome("wait", "ConnectError")
LIMITED = Outcome("wait", "429: empty body", 429, 20_000)
BROKEN = Outcome("retry", "500: empty body", 500)
AWAY = Outcome("retry", "503: HTML", 503)
REFUSED = Outcome("refused", "401: error", 401)
MALFORMED = Outcome("permanent", "400: error", 400)


def claim(**facts: object) -> Claim:
    return replace(CLAIM, **facts)  # type: ignore[arg-type]  # each test names fields of it


def known(**facts: object) -> Evidence:
    return replace(CALM, **facts)  # type: ignore[arg-type]  # the same


@pytest.mark.parametrize(
    ("outcome", "claim", "known", "verdict"),
    [
        pytest.param(MALFORMED, CLAIM, known(is_paused=True), DeadLetter("400: error"), id="permanent is dead"),
        pytest.param(REFUSED, CLAIM, CALM, Pause("refused", 1, 1_000, is_charged=False), id="refused pauses at once"),
        pytest.param(
            LIMITED, CLAIM, CALM, Pause("down", 1, 20_000, is_charged=False), id="429 pauses as long as asked"
        ),
        pytest.param(UNREACHED, CLAIM, CALM, RetryLater(1_000, is_charged=False), id="no answer, others succeed"),
        pytest.param(BROKEN, CLAIM, CALM, RetryLater(1_000, is_charged=True), id="5xx, others succeed"),
        pytest.param(
            BROKEN, CLAIM, known(peers="none"), RetryLater(1_000, is_charged=False), id="5xx, nobody succeeded"
        ),
        pytest.param(
            BROKEN,
            claim(failures=3),
            CALM,
            DeadLetter("500: empty body (after 3 retries)"),
            id="5xx, retries used up",
        ),
        pytest.param(
            BROKEN, CLAIM, known(peers="fail"), Pause("down", 1, 1_000, is_charged=False), id="5xx of a second"
        ),
        pytest.param(
            UNREACHED,
            CLAIM,
            known(peers="fail"),
            Pause("down", 1, 1_000, is_charged=False),
            id="no answer to a second",
        ),
        pytest.param(
            BROKEN,
            claim(failures=3),
            known(peers="fail"),
            Pause("down", 1, 1_000, is_charged=False),
            id="used up, but a second fails too",
        ),
        pytest.param(
            UNREACHED,
            CLAIM,
            known(is_alone=True),
            Pause("down", 1, 1_000, is_charged=False),
            id="no answer to the only one",
        ),
        pytest.param(
            BROKEN,
            CLAIM,
            known(is_alone=True, peers="none"),
            RetryLater(1_000, is_charged=False),
            id="5xx of the only one",
        ),
        pytest.param(
            BROKEN,
            claim(consecutive_failures=9),
            known(is_alone=True, peers="none"),
            RetryLater(300_000, is_charged=True),
            id="5xx of the only one at full backoff",
        ),
        pytest.param(
            AWAY,
            claim(failures=3),
            CALM,
            DeadLetter("503: HTML (after 3 retries)"),
            id="503, others succeed, used up",
        ),
        pytest.param(
            AWAY,
            claim(consecutive_failures=9, failures=3),
            known(is_alone=True, peers="none"),
            RetryLater(300_000, is_charged=False),
            id="503 of the only one at full backoff",
        ),
        pytest.param(
            BROKEN,
            claim(is_probe=True, pause_count=9, failures=3),
            known(is_alone=True, is_paused=True),
            DeadLetter("500: empty body (after 3 retries)"),
            id="the only one, as a probe, used up",
        ),
        pytest.param(
            BROKEN,
            claim(is_probe=True, pause_count=4, failures=3),
            known(is_paused=True),
            Pause("down", 5, 16_000, is_charged=False),
            id="5xx on a probe, others wait",
        ),
        pytest.param(UNREACHED, CLAIM, known(is_paused=True), Release(), id="in flight when another paused it"),
        pytest.param(BROKEN, CLAIM, known(is_paused=True), Release(), id="the same with a 5xx"),
        pytest.param(BROKEN, CLAIM, known(is_paused=True, peers="fail"), Release(), id="the same, and another fails"),
    ],
)
def test_table(outcome: Outcome, claim: Claim, known: Evidence, verdict: object) -> None:
    assert judge(outcome, claim, known, POLICY, 1.0) == verdict


CLAIMS = st.builds(
    claim,
    consecutive_failures=st.integers(0, 30),
    failures=st.integers(0, 4),
    is_probe=st.booleans(),
    pause_count=st.integers(0, 30),
)
EVIDENCE = st.builds(
    Evidence,
    is_paused=st.booleans(),
    peers=st.sampled_from(["succeed", "fail", "none"]),
    is_alone=st.booleans(),
)
DICE = st.floats(0, 1)


@given(CLAIMS, EVIDENCE, DICE, st.sampled_from([UNREACHED, LIMITED, REFUSED]))
def test_what_is_no_5xx_never_charges_and_never_kills(
    claim: Claim, known: Evidence, dice: float, outcome: Outcome
) -> None:
    verdict = judge(outcome, claim, known, POLICY, dice)
    assert not isinstance(verdict, DeadLetter)
    assert not getattr(verdict, "is_charged", False)


@given(CLAIMS, EVIDENCE, DICE)
def test_job_is_held_responsible_only_if_others_succeed_or_it_is_the_only_one(
    claim: Claim, known: Evidence, dice: float
) -> None:
    verdict = judge(BROKEN, claim, known, POLICY, dice)
    if isinstance(verdict, DeadLetter) or getattr(verdict, "is_charged", False):
        assert known.is_alone or known.peers == "succeed"


@given(CLAIMS, EVIDENCE, DICE, st.sampled_from([UNREACHED, BROKEN, REFUSED]))
def test_no_delay_is_longer_than_five_minutes(claim: Claim, known: Evidence, dice: float, outcome: Outcome) -> None:
    assert getattr(judge(outcome, claim, known, POLICY, dice), "delay_ms", 0) <= 300_000

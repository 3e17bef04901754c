"""The hammer in short; `make hammer` is the long one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.stress.hammer import Plan, run


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="whose a connection is stands in Linux's /proc")
def test_nothing_is_lost_or_doubled_while_consumers_and_enqueuers_are_killed() -> None:
    seed = random.randrange(1 << 32)  # noqa: S311 - nothing to protect
    plan = Plan(turns=200, consumer_kills=3, enqueuer_kills=1, enqueuers=2, seed=seed)
    verdict = run(plan, print)
    assert verdict.problems == [], (plan, verdict.facts)
    assert verdict.facts["consumers killed"] == 3
    assert verdict.facts["enqueuers killed, POSTs under way"] == 1

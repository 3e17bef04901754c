from __future__ import annotations

import doctest
from datetime import UTC, datetime
from email.utils import format_datetime
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.delivery import backoff
from app.delivery.backoff import delay_ms
from app.exporters import outcome
from app.exporters.outcome import RETRY_AFTER_MS_MAX, retry_after_ms

NOW_MS = 1_790_000_000_000


@pytest.mark.parametrize("module", [outcome, backoff])
def test_the_examples_in_the_documentation_hold(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


@pytest.mark.parametrize(
    ("failures", "bound_ms"),
    [(1, 1_000), (2, 2_000), (3, 4_000), (6, 32_000), (7, 60_000), (8, 60_000)],
)
def test_the_bound_doubles_with_each_failure_up_to_the_cap(failures: int, bound_ms: int) -> None:
    assert delay_ms(failures, base_ms=1_000, cap_ms=60_000, dice=1.0) == bound_ms


def test_jitter_is_full_so_that_jobs_do_not_return_in_step() -> None:
    delays = [delay_ms(4, base_ms=1_000, cap_ms=60_000, dice=dice / 4) for dice in range(5)]
    assert delays == [0, 2_000, 4_000, 6_000, 8_000]


@given(
    failures=st.integers(min_value=0, max_value=10**12),
    base_ms=st.integers(min_value=1, max_value=10**9),
    cap_ms=st.integers(min_value=1, max_value=10**9),
    dice=st.floats(min_value=0, max_value=1),
)
@example(failures=10**12, base_ms=10**9, cap_ms=1, dice=1.0)
def test_no_number_of_failures_overflows_or_passes_the_cap(
    failures: int, base_ms: int, cap_ms: int, dice: float
) -> None:
    assert 0 <= delay_ms(failures, base_ms=base_ms, cap_ms=cap_ms, dice=dice) <= cap_ms


def http_date(delta_ms: int) -> str:
    return format_datetime(datetime.fromtimestamp((NOW_MS + delta_ms) / 1000, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("header", "expected_ms"),
    [
        pytest.param("0", 0, id="zero"),
        pytest.param("120", 120_000, id="seconds"),
        pytest.param(" 7 ", 7_000, id="surrounding space"),
        pytest.param("-5", 0, id="negative seconds"),
        pytest.param("3601", RETRY_AFTER_MS_MAX, id="beyond an hour"),
        pytest.param("9" * 5000, RETRY_AFTER_MS_MAX, id="more digits than Python converts"),
        pytest.param(http_date(90_000), 90_000, id="date"),
        pytest.param(http_date(-90_000), 0, id="date gone by"),
        pytest.param(http_date(86_400_000), RETRY_AFTER_MS_MAX, id="date tomorrow"),
        pytest.param(http_date(90_000).replace("GMT", "-0000"), 90_000, id="date without a zone is GMT"),
        pytest.param("", None, id="absent"),
        pytest.param("soon", None, id="a word"),
        pytest.param("1.5", None, id="a fraction"),
        pytest.param("²", None, id="a digit of another kind"),
        pytest.param("Mon, 99 Foo 2026 25:61:61 GMT", None, id="no date"),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(header: str, expected_ms: int | None) -> None:
    assert retry_after_ms(header, NOW_MS) == expected_ms


@pytest.mark.slow
@given(header=st.one_of(st.text(), st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [A-Z+-]*\d*")))
def test_no_retry_after_header_raises_or_leaves_its_bounds(header: str) -> None:
    asked_ms = retry_after_ms(header, NOW_MS)
    assert asked_ms is None or 0 <= asked_ms <= RETRY_AFTER_MS_MAX

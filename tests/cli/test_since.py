"""What a person may type after `--since`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from app.cli.since import since_ms, since_whole_day_ms

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW_MS = 1_795_000_000_000


@pytest.fixture
def an_hour_ahead() -> Iterator[None]:
    """Of UTC, whatever this machine's time zone is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XXX-1")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("an_hour_ahead")
@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("90s", NOW_MS - 90_000),
        ("36h", NOW_MS - 36 * HOUR_MS),
        ("7d", NOW_MS - 7 * 24 * HOUR_MS),
        ("2w", NOW_MS - 14 * 24 * HOUR_MS),
        ("999999w", 0),
        ("today", NOW_MS - (NOW_MS + HOUR_MS) % DAY_MS),
        ("yesterday", NOW_MS - (NOW_MS + HOUR_MS) % DAY_MS - DAY_MS),
        ("1970-01-02", 23 * HOUR_MS),
        ("1970-01-02T01:30", 24 * HOUR_MS + HOUR_MS // 2),
        ("1970-01-02T01:30+00:00", 25 * HOUR_MS + HOUR_MS // 2),
    ],
)
def test_durations_count_back_from_now_and_dates_begin_at_local_midnight(text: str, expected_ms: int) -> None:
    assert since_ms(text, NOW_MS) == expected_ms


@pytest.mark.usefixtures("an_hour_ahead")
@pytest.mark.parametrize(
    ("text", "same"), [("1d", "yesterday"), ("36h", "36h"), ("yesterday", "yesterday"), ("1970-01-02", "1970-01-02")]
)
def test_where_days_are_summed_up_the_first_counts_whole(text: str, same: str) -> None:
    assert since_whole_day_ms(text, NOW_MS) == since_ms(same, NOW_MS)


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 d", "tomorrow", "2026-13-01", "1234567d"])
def test_anything_else_is_refused_with_what_was_meant(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a duration \(12h, 7d, 2w\) nor a day"):
        since_ms(text, NOW_MS)

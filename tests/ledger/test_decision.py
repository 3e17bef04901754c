"""Whether a version is wanted: the table of `app/ledger/decision.py`, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.ledger.decision import BACKFILL, IMPORT, LIVE, RECALL, REFILL, Current, Decision, Known, Reopen, decide
from app.ledger.job import SESSION_RECORD, Version
from app.privacy.policy import Policy

KEY = "a" * 64
LOOSE = Policy("full", (), redact_secrets=True, prefix="").facts("")
STRICT = Policy("metadata_only", (), redact_secrets=True, prefix="").facts("")
VERSION = Version(
    session="ses_1", root="ses_1", turn="t1", key=KEY, last_event_ms=100, user_id="", folder="", policy=LOOSE
)
OTHER = Current(
    key="b" * 64,
    state="delivered",
    drop_reason=None,
    last_event_ms=50,
    policy=LOOSE,
    is_in_flight=False,
    is_sealed=False,
    body_not_stored=False,
)
SAME = replace(OTHER, key=KEY)
UNKNOWN = Known(current=None, is_there=False, is_sealed=False, holds_sealed=False)


def known(current: Current | None, **facts: bool) -> Known:
    return replace(UNKNOWN, current=current, **{"is_there": current is not None and current.key == KEY, **facts})


def dropped(current: Current, reason: str) -> Current:
    return replace(current, state="dropped", drop_reason=reason)  # type: ignore[arg-type]  # one of its reasons


def under(key: str | None, turn: str = "t1", last_event_ms: int = 100) -> Version:
    """That would have this key under a stricter policy."""
    return replace(VERSION, turn=turn, last_event_ms=last_event_ms, key_under=lambda _: key)


STRICTER = replace(OTHER, policy=STRICT)
SEALED = Reopen(sealed=True)
OFF = replace(VERSION, is_off=True)
CASES: dict[str, tuple[Version, Known, Reopen, Decision]] = {
    "a turn that is not known": (VERSION, UNKNOWN, LIVE, Decision.NEW),
    "a newer version": (VERSION, known(OTHER), LIVE, Decision.NEW),
    "one as new as the current": (VERSION, known(replace(OTHER, last_event_ms=100)), LIVE, Decision.NEW),
    "a newer one that was there before": (VERSION, known(OTHER, is_there=True), LIVE, Decision.REOPENED),
    "an older version": (VERSION, known(replace(OTHER, last_event_ms=101)), LIVE, Decision.SUPERSEDED),
    "an older one that is there": (
        VERSION,
        known(replace(OTHER, last_event_ms=101), is_there=True),
        LIVE,
        Decision.KNOWN,
    ),
    # the same
    "the same": (VERSION, known(SAME), LIVE, Decision.KNOWN),
    "the same, dropped for its policy": (VERSION, known(dropped(SAME, "policy")), LIVE, Decision.REOPENED),
    "the same, dropped for want of room": (VERSION, known(dropped(SAME, "size")), LIVE, Decision.KNOWN),
    "the same, dropped for want of room, in a backfill": (
        VERSION,
        known(dropped(SAME, "size")),
        BACKFILL,
        Decision.REOPENED,
    ),
    "the same, purged, in a backfill": (VERSION, known(dropped(SAME, "purged")), BACKFILL, Decision.KNOWN),
    "the same, purged, imported": (VERSION, known(dropped(SAME, "purged")), IMPORT, Decision.REOPENED),
    "the same, deleted, imported": (VERSION, known(dropped(SAME, "deleted")), IMPORT, Decision.KNOWN),
    "the same without its body, imported": (
        VERSION,
        known(replace(SAME, body_not_stored=True)),
        IMPORT,
        Decision.REOPENED,
    ),
    "the same, delivered, recalled": (VERSION, known(SAME), RECALL, Decision.REOPENED),
    "the same, pending, filled again": (VERSION, known(replace(SAME, state="pending")), REFILL, Decision.REOPENED),
    "the same, in flight": (
        VERSION,
        known(replace(SAME, state="pending", is_in_flight=True)),
        RECALL,
        Decision.KNOWN,
    ),
    # what stays as it is until somebody asks
    **{
        f"a turn dropped as {reason}": (VERSION, known(dropped(OTHER, reason)), LIVE, Decision.REFUSED)
        for reason in ("off", "deleted")
    },
    "a turn dropped as off, asked for": (
        VERSION,
        known(dropped(OTHER, "off")),
        Reopen(frozenset({"off"})),
        Decision.NEW,
    ),
    "a sealed turn": (VERSION, known(replace(OTHER, is_sealed=True)), LIVE, Decision.REFUSED),
    "a sealed turn, asked for": (VERSION, known(replace(OTHER, is_sealed=True)), SEALED, Decision.NEW),
    "a turn sealed elsewhere": (VERSION, known(None, is_sealed=True), LIVE, Decision.REFUSED),
    "an older version of it": (
        VERSION,
        known(replace(OTHER, last_event_ms=101), is_sealed=True),
        LIVE,
        Decision.SUPERSEDED,
    ),
    "a turn sealed elsewhere, asked for": (VERSION, known(None, is_sealed=True), SEALED, Decision.NEW),
    "a turn with a sealed subagent": (VERSION, known(SAME, holds_sealed=True), LIVE, Decision.REFUSED),
    "a turn with a sealed subagent, asked for": (VERSION, known(None, holds_sealed=True), SEALED, Decision.NEW),
    # off
    "off, of a turn that is not known": (OFF, UNKNOWN, LIVE, Decision.NEW),
    "off, newer": (OFF, known(OTHER), LIVE, Decision.NEW),
    "off, as new": (OFF, known(replace(OTHER, last_event_ms=100)), LIVE, Decision.KNOWN),
    "off, of the session's record": (replace(OFF, turn=SESSION_RECORD), known(OTHER), LIVE, Decision.KNOWN),
    # there under a stricter policy
    "there under a stricter policy": (under(OTHER.key), known(STRICTER), LIVE, Decision.KNOWN),
    "there under a stricter policy, and changed": (under("c" * 64), known(STRICTER), LIVE, Decision.NEW),
    "there under a stricter policy, imported": (under(OTHER.key), known(STRICTER), IMPORT, Decision.NEW),
    "there under a stricter policy, but dropped": (
        under(OTHER.key),
        known(dropped(STRICTER, "age")),
        LIVE,
        Decision.NEW,
    ),
    "there under a looser policy": (
        replace(under(OTHER.key), policy=STRICT),
        known(OTHER),
        LIVE,
        Decision.NEW,
    ),
    "there under patterns that are forgotten": (under(None, last_event_ms=50), known(STRICTER), LIVE, Decision.KNOWN),
    "there under patterns that are forgotten, but newer": (under(None), known(STRICTER), LIVE, Decision.NEW),
    "the session's record under forgotten patterns": (
        under(None, SESSION_RECORD),
        known(STRICTER),
        LIVE,
        Decision.KNOWN,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_table(case: str) -> None:
    version, there, reopen, decision = CASES[case]
    assert decide(version, there, reopen) is decision

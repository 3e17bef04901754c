"""Which turns a look takes: by what was noted of them, and how many at once."""

from __future__ import annotations

from typing import cast

import pytest

from app.capture.session_reader import ROWS_MAX, ReadRequest, _batch, _is_to_be_read, _Read, reason_of
from app.errors import ExportError
from app.ledger.notices import TurnRead
from app.privacy.policy import Policy
from app.privacy.terms import Capture
from app.sources.opencode.access import AbsentError, InMemoryError, StoreError
from app.sources.opencode.turns import TurnOutline
from app.transcript.model import TranscriptError

LOOSE = Policy(mode="full", patterns=(), redact_secrets=True, prefix="/p").facts("")
STRICT = Policy(mode="metadata_only", patterns=(), redact_secrets=True, prefix="/p").facts("")
ONE = TurnOutline("t1", 4, 1_000)
AS_IT_IS, AS_IT_WAS = TurnRead(4, 1_000, LOOSE), TurnRead(3, 900, LOOSE)
THEN = ("t1", False)


def is_taken(
    read: _Read, *, policy: str = LOOSE, since_ms: int | None = None, again: bool = False, then: tuple[str, bool] = THEN
) -> bool:
    request = ReadRequest("folder", cast("Capture", None), 5_000, since_ms=since_ms, again=again)
    return _is_to_be_read(ONE, read, then, request, policy)


@pytest.mark.parametrize(
    ("read", "options", "expected"),
    [
        (_Read({}), {}, True),
        (_Read({"t1": AS_IT_WAS}), {}, True),
        (_Read({"t1": AS_IT_IS}), {}, False),
        (_Read({"t1": AS_IT_IS}), {"policy": STRICT}, True),
        (_Read({"t1": AS_IT_IS}), {"policy": STRICT, "since_ms": 0}, False),
        (_Read({"t1": TurnRead(4, 1_000, STRICT)}), {}, False),
        (_Read({"t1": AS_IT_IS}, waiting={"t1": THEN}), {}, False),
        (_Read({"t1": AS_IT_IS}, waiting={"t1": THEN}), {"again": True}, True),
        (_Read({"t1": AS_IT_IS}, waiting={"t1": THEN}), {"then": ("t2", False)}, True),
        (_Read({"t1": AS_IT_IS}, waiting={"t1": THEN}), {"then": ("t1", True)}, True),
        (_Read({}, early={"t1": (4, 1_000)}), {"since_ms": 2_000}, False),
        (_Read({}, early={"t1": (3, 900)}), {"since_ms": 2_000}, True),
        (_Read({}, early={"t1": (4, 1_000)}), {}, True),
    ],
    ids=[
        "new",
        "changed",
        "as before",
        "under a stricter policy",
        "which sends nothing again where only what was missed is taken",
        "under a looser policy",
        "unfinished, as before",
        "unfinished, noticed again",
        "unfinished, and the person went on",
        "unfinished, and nobody is to finish it",
        "from before capture, as before",
        "from before capture, changed",
        "from before capture, and all of it is wanted now",
    ],
)
def test_a_turn_is_taken_when_it_is_not_in_the_ledger_as_it_is(
    read: _Read, options: dict[str, object], *, expected: bool
) -> None:
    assert is_taken(read, **options) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([], 0), ([ROWS_MAX + 1, 1], 1), ([ROWS_MAX - 1, 1, 1], 2), ([1, 1, 1], 3)],
    ids=["none", "one that is too large alone", "as many as fit", "all"],
)
def test_one_look_takes_a_few_turns_and_at_least_one(rows: list[int], expected: int) -> None:
    assert len(_batch([TurnOutline(f"t{number}", many, 0) for number, many in enumerate(rows)])) == expected


@pytest.mark.parametrize(
    "error",
    [
        InMemoryError("/secret"),
        AbsentError("/secret"),
        StoreError("/secret"),
        ExportError("/secret"),
        TranscriptError("/secret"),
    ],
)
def test_why_a_session_cannot_be_read_is_told_without_a_path(error: ExportError | TranscriptError) -> None:
    assert "secret" not in reason_of(error)

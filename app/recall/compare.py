"""Compares what Helicone shows with what a recall sent: its rows are read back until they are overwritten."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.delivery.confirm import IDS_MAX
from app.exporters.answer import AnswerError, parsed
from app.exporters.client import ReadBackError
from app.exporters.encoder import Shown
from app.recall.expected import ExpectedContent, json_digest

Outcome = Literal["overwritten", "deleted", "still there", "still old", "without body", "not there", "not read back"]
Reader: TypeAlias = Callable[[int, Sequence[uuid.UUID]], Mapping[uuid.UUID, Sequence[Shown]]]
"""(earliest start in ms, request ids) -> what Helicone shows of those that are stored. Raises ReadBackError."""
LOOK_S = 1.0
_NOT_YET = frozenset({"still old", "still there", "not there"})
DONE = frozenset({"overwritten", "deleted"})


def presence(stored: Callable[[int, Sequence[uuid.UUID]], Mapping[uuid.UUID, bool]]) -> Reader:
    """Of a destination that says whether something is there, and not what."""

    def read(start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Shown]]:
        return {one: [_SOMETHING] for one in stored(start_ms, request_ids)}

    return read


_SOMETHING = Shown(None, None)


@dataclass(frozen=True, slots=True)
class Seen:
    """What Helicone shows of one record."""

    session: str
    path: str
    request_id: str
    outcome: Outcome
    reason: str = ""


def look(read: Reader, expected: Sequence[ExpectedContent], *, end_s: float) -> list[Seen]:
    """Read all of them back, and those that are not overwritten again until `end_s` (monotonic).

    Every query is made once at least, however late it is, unless the first of them fails.
    """
    seen: dict[str, Seen] = {}
    left = list(expected)
    while True:
        for batch in _batches(left):
            seen |= {one.request_id: one for one in _read(read, batch)}
            if all(one.outcome == "not read back" for one in seen.values()):
                return [seen.get(str(one.request_id)) or _unread(one, next(iter(seen.values())).reason) for one in left]
        left = [one for one in left if seen[str(one.request_id)].outcome in _NOT_YET]
        if not left or time.monotonic() >= end_s:
            return [seen[str(one.request_id)] for one in expected]
        time.sleep(min(LOOK_S, max(0.0, end_s - time.monotonic())))


def _batches(expected: Sequence[ExpectedContent]) -> Iterator[list[ExpectedContent]]:
    sessions: dict[str, list[ExpectedContent]] = {}
    for one in expected:
        sessions.setdefault(one.session, []).append(one)
    for found in sessions.values():
        for at in range(0, len(found), IDS_MAX):
            yield found[at : at + IDS_MAX]


def _read(read: Reader, batch: Sequence[ExpectedContent]) -> Iterator[Seen]:
    try:
        rows = read(min(one.start_ms for one in batch), [one.request_id for one in batch])
    except ReadBackError as error:
        yield from (_unread(one, str(error)) for one in batch)
        return
    for one in batch:
        yield Seen(one.session, one.path, str(one.request_id), _outcome(one, rows.get(one.request_id, [])))


def _unread(expected_content: ExpectedContent, reason: str) -> Seen:
    return Seen(
        expected_content.session, expected_content.path, str(expected_content.request_id), "not read back", reason
    )


def _outcome(expected_content: ExpectedContent, rows: Sequence[Shown]) -> Outcome:
    if expected_content.is_gone:
        return "still there" if rows else "deleted"
    if not rows:
        return "not there"
    if not expected_content.is_shown:
        return "overwritten"
    found = [_compared(expected_content, row) for row in rows]
    return next((one for one in found if one != "overwritten"), "overwritten")


def _compared(expected_content: ExpectedContent, row: Shown) -> Outcome:
    request, response = _parsed(row.request), _parsed(row.response)
    if not request and not response:
        return "without body"
    is_new = json_digest(request) in expected_content.requests and json_digest(response) == expected_content.response
    return "overwritten" if is_new else "still old"


def _parsed(body: object) -> object:
    try:
        return parsed(body) if isinstance(body, str) else body
    except AnswerError:
        return body

"""Remote check: looks for delivered records at Helicone, each by its request id.

    history.exported ─ identities ▶ wanted ─ Client.stored ─▶ found, without bodies, missing

Helicone's answers hold the whole bodies, wanted or not; so a query names few ids.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from app.exporters.client import OverlongError
from app.ledger.history import Exported
from app.ledger.record_identity import DELETED
from app.verify.turn_status import by_turn, current, state_in_ledger

IDS_MAX = 16
"""In one query: records of common sizes make a few MB."""


@dataclass(frozen=True, slots=True)
class AtCentre:
    """A record that the centre has and did not deliver, or not yet."""

    is_given_up: bool
    reason: str
    """Why; '' where it is about to be delivered."""


Reader: TypeAlias = Callable[[int, Sequence[uuid.UUID]], Mapping[uuid.UUID, bool | AtCentre]]
"""(earliest start in ms, request ids) -> those that are stored, and whether with their bodies; through an intake, also
those that are at the centre still. Raises ReadBackError."""


@dataclass(frozen=True, slots=True)
class RemoteCheck:
    """Records of one session."""

    found: int
    without_bodies: int
    """Of those found: Helicone kept their numbers only."""
    missing: int
    not_yet: int
    """Not found, and delivered so lately that Helicone may still have them in its queue."""
    missing_turns: tuple[str, ...]
    unnamed_turns: int
    """Delivered turns of which the ledger keeps no request ids, as they are from before it did."""
    at_centre: int = 0
    """The centre has them, and is about to deliver them."""
    dead_at_centre: Mapping[str, int] = field(default_factory=dict)
    """Those that the centre gave up, by reason."""

    @property
    def is_fine(self) -> bool:
        return not (self.missing or self.dead_at_centre)


@dataclass(frozen=True, slots=True)
class _Wanted:
    turn: str
    start_ms: int
    delivered_ms: int
    is_due: bool
    """It belongs to the delivered version. What an attempt at an earlier version sent may be there, too."""


def check(known: Sequence[Exported], read: Reader, *, now_ms: int, delay_ms: int) -> RemoteCheck:
    """Look for all records of a session's delivered turns.

    `delay_ms` is how long what was accepted may take to appear. Raises ReadBackError.
    """
    wanted, unnamed = _wanted(known)
    ids = sorted(wanted, key=lambda one: (wanted[one].start_ms, one))
    found: dict[uuid.UUID, bool | AtCentre] = {}
    for start in range(0, len(ids), IDS_MAX):
        found |= _read(ids[start : start + IDS_MAX], wanted, read)
    at_centre = [one for one in found.values() if isinstance(one, AtCentre)]
    absent = [one for request_id, one in wanted.items() if one.is_due and request_id not in found]
    missing = [one for one in absent if one.delivered_ms + delay_ms <= now_ms]
    return RemoteCheck(
        found=len(found) - len(at_centre),
        without_bodies=sum(one is False for one in found.values()),
        missing=len(missing),
        not_yet=len(absent) - len(missing),
        missing_turns=tuple(dict.fromkeys(one.turn for one in missing)),
        unnamed_turns=unnamed,
        at_centre=sum(not one.is_given_up for one in at_centre),
        dead_at_centre=dict(Counter(one.reason for one in at_centre if one.is_given_up)),
    )


def _wanted(known: Sequence[Exported]) -> tuple[dict[uuid.UUID, _Wanted], int]:
    """By request id; and how many delivered turns have none."""
    wanted: dict[uuid.UUID, _Wanted] = {}
    unnamed = 0
    for turn, versions in by_turn(known).items():
        delivered = current(versions)
        if delivered is None or state_in_ledger(delivered) not in {"delivered", "recalled"}:
            continue
        # A recall of what was never sent has no records.
        unnamed += not delivered.identities and not delivered.is_recall
        for version in versions:
            for one in version.identities if version.was_attempted or version is delivered else ():
                if version is delivered or one.request_id not in wanted:
                    is_due = version is delivered and one.digest != DELETED
                    start_ms, delivered_ms = one.identity_fields.start_ms, delivered.finished_ms or 0
                    wanted[one.request_id] = _Wanted(turn, start_ms, delivered_ms, is_due)
    return wanted, unnamed


def _read(
    ids: Sequence[uuid.UUID], wanted: Mapping[uuid.UUID, _Wanted], read: Reader
) -> dict[uuid.UUID, bool | AtCentre]:
    try:
        return dict(read(min(wanted[one].start_ms for one in ids), ids))
    except OverlongError:
        if len(ids) == 1:
            raise
        middle = len(ids) // 2
        return _read(ids[:middle], wanted, read) | _read(ids[middle:], wanted, read)

"""Destinations as a person sees them: who waits where, and what moves or gives up what waits at one of them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from app.capture.targets import target
from app.errors import AppError
from app.ledger import adoption, counts
from app.operations.status import DestinationStatus, read_destinations
from app.settings.model import Settings


class DestinationError(AppError):
    """One was named that is not there, or with which this cannot be done."""


@dataclass(frozen=True, slots=True)
class Listed:
    id: int | None
    """None: the present settings mean it, and nothing was ever captured for it."""
    current: bool
    is_meant: bool
    """The present settings mean it, or name it."""
    kind: str
    name: str
    endpoint: str
    key: str | None
    """The beginning of its fingerprint."""
    health: str
    reason: str
    pending: int
    delivered: int
    dead: int


def listed(db: sqlite3.Connection, settings: Settings, now_ms: int) -> list[Listed]:
    """The one that the settings mean first; of the others those for which anything was ever captured."""
    return [
        Listed(
            id=one.id,
            current=one.current,
            is_meant=one.is_meant,
            kind=one.kind,
            name=one.name,
            endpoint=one.endpoint,
            key=one.key,
            health=one.health,
            reason=one.pause_reason or "",
            pending=one.jobs.pending,
            delivered=one.jobs.delivered,
            dead=one.jobs.dead,
        )
        for one in read_destinations(db, settings, now_ms)
        if one.is_meant or one.jobs.pending or one.jobs.delivered or one.jobs.dead
    ]


def chosen(db: sqlite3.Connection, settings: Settings, number: int, now_ms: int) -> DestinationStatus:
    """Raises DestinationError."""
    for one in read_destinations(db, settings, now_ms):
        if one.id == number:
            return one
    raise DestinationError(f"there is no destination {number}: `opencode-helicone destination list` has them")


def movable(db: sqlite3.Connection, settings: Settings, number: int, now_ms: int) -> DestinationStatus:
    """The one from which jobs can be moved to that of the settings. Raises DestinationError."""
    one = chosen(db, settings, number, now_ms)
    if not settings.credential:
        raise DestinationError("no key is set for where they would go: run `opencode-helicone setup`")
    if one.kind != settings.kind:
        raise DestinationError(f"destination {number} is of another kind: what was made for it is nothing elsewhere")
    if one.current:
        raise DestinationError(f"destination {number} is the one that the settings mean: nothing is to be moved")
    return one


def adopt(db: sqlite3.Connection, settings: Settings, one: DestinationStatus, now_ms: int) -> int:
    """Move what waits there to the destination of the settings; the number of jobs that waited there and no longer do.

    What was delivered of a session moves with it.
    """
    ours = target(db, settings, now_ms)
    if one.id is None:
        return 0
    waited = counts.counts(db, one.id).pending
    adoption.adopt(db, one.id, ours.id, now_ms=now_ms)
    return waited - counts.counts(db, one.id).pending


def give_up(db: sqlite3.Connection, one: DestinationStatus, now_ms: int) -> int:
    """Give up what waits or is dead there; the number of jobs. What is being posted right now is not."""
    return 0 if one.id is None else adoption.give_up(db, one.id, now_ms)

"""Decision: whether a version of a turn is wanted, by what is known of the turn and what a caller asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from app.ledger.job import SESSION_RECORD, Version
from app.privacy.policy import is_as_strict

DropReason: TypeAlias = Literal["age", "size", "deleted", "off", "policy", "purged"]


class Decision(Enum):
    """What the ledger would do with a version, and what it did."""

    NEW = "new"
    REOPENED = "reopened"
    KNOWN = "known"
    SUPERSEDED = "superseded"
    """Older than what the ledger has."""
    REFUSED = "refused"
    """The turn was dropped as `off` or `deleted`, or sealed by a recall: it stays so until somebody asks."""


WANTED = (Decision.NEW, Decision.REOPENED)


@dataclass(frozen=True, slots=True)
class Reopen:
    """What a caller asks to have back."""

    dropped: frozenset[DropReason] = frozenset()
    """Jobs that were dropped for these reasons."""
    states: frozenset[Literal["pending", "delivered", "dead"]] = frozenset()
    """Jobs that are in these states and not in flight are made anew."""
    body_not_stored: bool = False
    """Delivered jobs of which Helicone kept the numbers only."""
    sealed: bool = False
    stricter: bool = False
    """What is there under a stricter policy, and has not changed since."""

    def takes(self, current: Current) -> bool:
        return (
            # Whoever captures it under the very policy that was too loose once does so because it no longer is.
            current.drop_reason in {"policy", *self.dropped}
            or (current.state in self.states and not current.is_in_flight)
            or (self.body_not_stored and current.body_not_stored)
        )


LIVE = Reopen()
REFILL = Reopen(states=frozenset({"pending"}))
BACKFILL = Reopen(dropped=frozenset({"age", "size"}))
"""Nobody has decided that these shall not be sent."""
IMPORT = Reopen(dropped=frozenset({"age", "size", "purged"}), body_not_stored=True, stricter=True)
"""A person has named the file. What was `off` or `deleted` stays so."""
RECALL = Reopen(
    dropped=frozenset({"age", "size", "deleted", "off", "purged"}),
    states=frozenset({"pending", "delivered", "dead"}),
    body_not_stored=True,
    sealed=True,
)
"""Whatever became of a turn: what of it is at Helicone is overwritten."""


@dataclass(frozen=True, slots=True)
class Current:
    """The version of a turn that is not superseded."""

    key: str
    state: str
    drop_reason: DropReason | None
    last_event_ms: int
    policy: str
    """What it was made under, as `Policy.facts` says it; '' where that was not kept."""
    is_in_flight: bool
    is_sealed: bool
    body_not_stored: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows that bears on a version."""

    current: Current | None
    is_there: bool
    """Its key was taken before, whatever has become of that."""
    is_sealed: bool
    """Its turn was sealed, under another key, at this destination or another one of its endpoint."""
    holds_sealed: bool
    """So was a subagent in it, as a session of its own: its text would come back with the turn."""


def decide(version: Version, known: Known, reopen: Reopen) -> Decision:
    """What becomes of a version; nothing else says whether one is wanted."""
    if known.holds_sealed and not reopen.sealed:
        return Decision.REFUSED
    decision = _by_age(version, known, reopen)
    if decision not in WANTED:
        return decision
    if known.is_sealed and not reopen.sealed:
        return Decision.REFUSED
    if not reopen.stricter and _is_there_stricter(version, known.current):
        return Decision.KNOWN
    return decision


def _by_age(version: Version, known: Known, reopen: Reopen) -> Decision:
    current = known.current
    if current is not None:
        if current.key == version.key:
            return Decision.REOPENED if reopen.takes(current) else Decision.KNOWN
        if current.is_sealed and not reopen.sealed:
            return Decision.REFUSED
        if current.drop_reason in {"off", "deleted"} and current.drop_reason not in reopen.dropped:
            return Decision.REFUSED
        # What is off says nothing about a turn that is known, unless it is newer. (OpenCode's update time moves on with
        # every turn: it does not make the session's own record a newer one.)
        if version.is_off and (version.turn == SESSION_RECORD or version.last_event_ms <= current.last_event_ms):
            return Decision.KNOWN
        if version.last_event_ms < current.last_event_ms:
            return Decision.KNOWN if known.is_there else Decision.SUPERSEDED
    return Decision.REOPENED if known.is_there else Decision.NEW


def _is_there_stricter(version: Version, current: Current | None) -> bool:
    """Whether the same is there under a stricter policy; its key is another one then."""
    if current is None or current.drop_reason is not None or version.key_under is None:
        return False
    if is_as_strict(version.policy, current.policy) or not is_as_strict(current.policy, version.policy):
        return False
    key = version.key_under(current.policy)
    if key is None:  # its patterns are not known any more
        return version.turn == SESSION_RECORD or version.last_event_ms <= current.last_event_ms
    return key == current.key

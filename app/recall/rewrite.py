"""Rewrite: makes a turn's new version, which overwrites what was sent of it, or says why there is none.

records ┬─ those that are sent anew
        └─ a blank one for each that was sent, and is not among them ─▶ Rewrite
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from app.capture.enqueue import body_of
from app.exporters.encoder import Record
from app.exporters.encoding import overwriting
from app.ledger.history import Exported
from app.ledger.job import Body, IdentityFields, Version
from app.ledger.record_identity import RecordIdentity
from app.privacy.policy import Policy
from app.transcript.identity import Identity


class Refusal(Enum):
    """Why something is not overwritten."""

    IS_SUBAGENT = auto()
    """It was delivered with another session, which is the detail."""
    NOT_DELIVERED = auto()
    """The session was not delivered to this destination."""
    ELSEWHERE = auto()
    """It was delivered to another destination, too, whose endpoint is the detail."""
    NOT_AUDITED = auto()
    NOT_SEARCHED = auto()
    """For the reason that is the detail."""
    UNREADABLE = auto()
    """OpenCode's store cannot be read; the detail says why."""
    NO_TEXT = auto()
    """OpenCode has the text no more."""
    WITHHELD = auto()
    """Nothing of the folder may be posted; the detail says why."""
    SEALED = auto()
    """An earlier recall took something out that is not known here."""
    LOOSER = auto()
    """The setting that is the detail was stricter when the turn was delivered."""
    UNEQUAL = auto()
    """Made under the settings of then, the turn is not what was delivered."""
    UNNAMED = auto()
    """The ledger does not keep its request ids, and OpenCode has the text no more."""
    ROW_STAYS = auto()
    """The request id that is the detail has another row at Helicone, which this one does not replace."""
    IN_FLIGHT = auto()
    """A worker had it in hand all the time."""
    NOT_THERE = auto()
    """It was queued, and is not at Helicone; the detail says what is known."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is not overwritten: a session, a turn of it, or a record by its path."""

    refusal: Refusal
    session: str
    place: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One turn's new version."""

    version: Version
    bodies: tuple[Body, ...]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was sent of a root session, or may still be."""

    session: str
    identity: Identity
    turns: Mapping[str, Sequence[Exported]]
    """The versions of each, the current one last."""
    kind: str = "helicone"
    """Of the destination."""


def rewrite(
    of: Delivered,
    turn: str,
    made: Iterable[Body],
    *,
    key: str,
    policy: Policy,
    last_event_ms: int = 0,
    is_sealed: bool,
) -> Iterator[Rewrite | Problem]:
    """What is made of a turn takes the place of what was sent of it."""
    versions, user_id = of.turns[turn], of.identity.user_id
    bodies = {body.request_id: body for body in made}
    for one in sent(versions):
        other = bodies.get(one.request_id)
        if other is None:
            bodies[one.request_id] = _blank_body(one, of, user_id)
        elif other.identity_fields is not None and _row(other.identity_fields) != _row(one.identity_fields):
            yield Problem(Refusal.ROW_STAYS, of.session, turn, str(one.request_id))
    version = Version(
        session=of.session,
        root=of.session,
        turn=turn,
        key=key,
        last_event_ms=max(last_event_ms, *(one.last_event_ms for one in versions)),
        user_id=user_id,
        folder="",  # the session has one already
        policy=policy.facts(user_id),
        is_recall=True,
        is_sealed=is_sealed,
    )
    yield Rewrite(version, tuple(bodies.values()))


def sent(versions: Sequence[Exported]) -> Iterator[RecordIdentity]:
    """Each row that may be at Helicone once, the newest first."""
    seen = set()
    for version in reversed(versions):
        for one in version.identities if version.was_attempted else ():
            place = (one.request_id, _row(one.identity_fields))
            if place not in seen:
                seen.add(place)
                yield one


def _row(identity_fields: IdentityFields) -> tuple[str, str, int]:
    """What tells rows of one id apart: a record with another of these does not replace it."""
    return identity_fields.provider, identity_fields.model, identity_fields.start_ms


def blank_body(record: Record, of: Delivered) -> Body:
    """Nothing but what the destination knows the record by; without any bytes where it is deleted there."""
    encoder = overwriting(of.kind)
    return body_of(replace(record, body=b"") if encoder is None else encoder.blank(record, of.session))


def _blank_body(one: RecordIdentity, of: Delivered, user_id: str) -> Body:
    identity_fields, encoder = one.identity_fields, overwriting(of.kind)
    record = Record(
        request_id=str(one.request_id),
        kind="turn" if encoder is None else encoder.kind_of(identity_fields.model),
        path=identity_fields.path,
        provider=identity_fields.provider,
        model=identity_fields.model,
        user_id=user_id,
        start_ms=identity_fields.start_ms,
        end_ms=identity_fields.start_ms,
        is_failed=False,
        session_name=identity_fields.session_name,
        body=b"",
    )
    return blank_body(record, of)

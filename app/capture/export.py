"""Exports of a session: one for each final turn and one for the session itself; redacted and encoded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from app.exporters.encoder import Frame, Record
from app.exporters.encoding import encoder_of
from app.ledger.job import SESSION_RECORD
from app.privacy.metadata_only import withhold_session, withhold_turn
from app.privacy.redact import HitCounts, redact_session, redact_turn
from app.privacy.terms import Capture
from app.transcript.identity import Identity
from app.transcript.model import Assistant, Session, Tool, Transcript, Turn, User, has_ended, session_digest


@dataclass(frozen=True, slots=True)
class Export:
    """One job to be: the parts of its key, and how its records are made if the ledger wants them."""

    turn: str
    digest: str
    last_event_ms: int
    children: tuple[str, ...]
    record_count: int
    faults: tuple[str, ...]
    encode: Callable[[], Iterator[Record]]
    hits: HitCounts = field(default_factory=HitCounts, repr=False)
    """What `encode` has taken out, once it was called."""


def split(
    transcript: Transcript, capture: Capture, identity: Identity, *, abandoned: bool
) -> tuple[list[Export], list[Turn]]:
    """What is ready, the session's record and then its turns in order; and the turns that wait.

    A turn that is not final is ready as interrupted when a later user message follows it, or when the session is
    `abandoned`: nobody will complete it.
    """
    ready: list[Export] = []
    waiting: list[Turn] = []
    # Without a turn of its own a session says nothing yet; and there are destinations where it has no record.
    if transcript.turns and encoder_of(capture.kind).count(transcript.session):
        ready.append(_session_export(transcript, capture, identity))
    asked = [position for position, turn in enumerate(transcript.turns) if isinstance(turn.messages[0], User)]
    last_asked = asked[-1] if asked else -1
    for position, turn in enumerate(transcript.turns):
        if turn.final or abandoned or (position < last_asked and not _is_worked_on(turn)):
            ready.append(_turn_export(turn, capture, identity, interrupted=not turn.final))
        else:
            waiting.append(turn)
    return ready, waiting


def _is_worked_on(turn: Turn) -> bool:
    """Whether a subagent runs in the background: its call has long been answered, and the person may go on."""
    tools = [part for message in turn.messages for part in message.parts if isinstance(part, Tool)]
    running = [tool.child for tool in tools if tool.status == "completed" and tool.child is not None]
    return any(not has_ended(message) for child in running for inner in child.turns for message in inner.messages)


def _session_export(transcript: Transcript, capture: Capture, identity: Identity) -> Export:
    session, hits = transcript.session, HitCounts()

    def encode() -> Iterator[Record]:
        shown = _to_leave(session, capture, hits)
        return encoder_of(capture.kind).encode(shown, _frame(session, shown, capture, identity, interrupted=False))

    digest, count = session_digest(session), encoder_of(capture.kind).count(session)
    return Export(SESSION_RECORD, digest, session.updated_ms, (), count, transcript.faults, encode, hits)


def _turn_export(turn: Turn, capture: Capture, identity: Identity, *, interrupted: bool) -> Export:
    hits = HitCounts()

    def encode() -> Iterator[Record]:
        withheld = capture.policy.mode == "metadata_only"
        shown = withhold_turn(turn) if withheld else redact_turn(turn, capture.redaction, hits)
        return encoder_of(capture.kind).encode(
            shown, _frame(turn.session, shown.session, capture, identity, interrupted=interrupted)
        )

    below = tuple(children(turn))
    count = encoder_of(capture.kind).count(turn)
    return Export(turn.id, turn.digest, turn.last_event_ms, below, count, turn.faults, encode, hits)


def _to_leave(session: Session, capture: Capture, hits: HitCounts | None = None) -> Session:
    if capture.policy.mode == "metadata_only":
        return withhold_session(session)
    return redact_session(session, capture.redaction, hits)


def session_name(session: Session, capture: Capture, identity: Identity) -> str:
    """The name to be kept with a session that has none yet."""
    return _name(session, _to_leave(session, capture), capture, identity)


def _name(session: Session, shown: Session, capture: Capture, identity: Identity) -> str:
    def leave(text: str) -> str:
        return "" if capture.policy.mode == "metadata_only" else capture.redaction.text(text)

    return encoder_of(capture.kind).lasting_name(session, shown, identity, leave)


def _frame(session: Session, shown: Session, capture: Capture, identity: Identity, *, interrupted: bool) -> Frame:
    return Frame(
        root_session_id=shown.id,
        session_name=_name(session, shown, capture, identity),
        prefix=capture.policy.prefix,
        user_id=identity.user_id,
        interrupted=interrupted,
        encoding=identity.encoding,
    )


def children(turn: Turn) -> Iterator[str]:
    """The ids of the subagent sessions inside a turn, depth first."""
    for message in turn.messages:
        if isinstance(message, Assistant):
            for part in message.parts:
                if isinstance(part, Tool) and part.child is not None:
                    yield part.child.session.id
                    for inner in part.child.turns:
                        yield from children(inner)

"""Encoder of OTLP traces: a turn is one trace, and one record unless it is too large for one POST."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

from app.exporters.encoder import Frame, Record
from app.exporters.otlp import body as bodies
from app.exporters.otlp.ids import piece_id, span_id, trace_id
from app.exporters.otlp.spans import INTERNAL, SPAN_COUNT, Span, spans
from app.transcript.identity import Identity
from app.transcript.model import Json, Session, Turn

BODY_BYTES_MAX = 2**23
"""Before compression. The specification asks for less than 20 MiB, some receivers for less than 8 MB."""
_ENVELOPE_BYTES_MAX = 2**10
_VERSION_CHARACTERS_MAX = 64
_MODEL = "invoke_agent"


def encode(what: Session | Turn, frame: Frame) -> Iterator[Record]:
    """A session alone is nothing here. Of several records of a turn the last one has the root and the trace's id."""
    if isinstance(what, Session):
        return
    trace = trace_id(frame.root_session_id, what.id)
    version = (what.session.version or "")[: _ENVELOPE_BYTES_MAX // 8] or None
    pieces = 0
    held: list[bytes] = []
    size = _ENVELOPE_BYTES_MAX
    span = None
    for span in spans(what, frame):
        made = bodies.encoded(span, trace)
        if held and size + len(made) > BODY_BYTES_MAX:
            yield _record(what, frame, piece_id(trace, pieces), bodies.request(held, version), span)
            pieces, held, size = pieces + 1, [], _ENVELOPE_BYTES_MAX
        held.append(made)
        size += len(made)
    assert span is not None  # noqa: S101 - a turn has a root
    yield _record(what, frame, trace, bodies.request(held, version), span)


def count(what: Session | Turn) -> int:
    return 1 if isinstance(what, Turn) else 0


def lasting_name(session: Session, shown: Session, identity: Identity, leave: Callable[[str], str]) -> str:
    """None: sessions are told apart by their ids."""
    del session, shown, identity, leave
    return ""


def texts_of(body: bytes) -> list[Json]:
    return bodies.texts(body)


def trial(request_id: uuid.UUID, now_ms: int) -> bytes:
    trace = request_id.bytes
    span = Span(
        id=span_id(trace, "trial"),
        parent=b"",
        name="sent by opencode-helicone doctor --send",
        kind=INTERNAL,
        start_ms=now_ms,
        end_ms=now_ms,
        attributes={SPAN_COUNT: 1},
    )
    return bodies.request([bodies.encoded(span, trace)], None)


def _record(turn: Turn, frame: Frame, request_id: bytes, body: bytes, last: Span) -> Record:
    """`last`: the span that was made last, which is the root where the record is the last one."""
    return Record(
        request_id=str(uuid.UUID(bytes=request_id)),
        kind="turn",
        path=f"/{frame.root_session_id}/{turn.id}",
        provider="",
        model=_MODEL,
        user_id=frame.user_id,
        start_ms=min(message.created_ms for message in turn.messages),
        end_ms=last.end_ms,
        is_failed=last.error is not None,
        session_name=frame.session_name,
        body=body,
    )

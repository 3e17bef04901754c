"""What an OTLP body says, as Google's library reads it: the tests' own eyes, which share no code with the program."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.exporters.encoder import Frame, Record
from app.exporters.otlp import encoder
from app.transcript.model import Text, Tool, Transcript, Turn, User
from app.transcript.parse import parse
from tests.support import recorded

LISTS = ("gen_ai.input.messages", "gen_ai.output.messages")


@dataclass(frozen=True, slots=True)
class Seen:
    """A span."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    status: str
    """`OK`, `UNSET` or `ERROR`."""
    status_message: str
    events: list[tuple[str, dict[str, Any]]]


def request(body: bytes) -> Any:
    return ExportTraceServiceRequest.FromString(body)


def seen(*bodies: bytes) -> list[Seen]:
    return [
        _seen(span)
        for body in bodies
        for resource in request(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _seen(span: Any) -> Seen:
    return Seen(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        kind={1: "INTERNAL", 3: "CLIENT"}[span.kind],
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=attributes(span.attributes),
        status=("UNSET", "OK", "ERROR")[span.status.code],
        status_message=span.status.message,
        events=[(event.name, attributes(event.attributes)) for event in span.events],
    )


def attributes(listed: Any) -> dict[str, Any]:
    found = {one.key: _value(one.value) for one in listed}
    assert len(found) == len(listed), "an attribute twice"
    return found


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def snapshot(name: str) -> recorded.Snapshot:
    """A recording as exported, secrets as placeholders; one has no export."""
    if name in recorded.exported():
        return recorded.template(name)
    (only,) = recorded.replayed(name).values()
    return only


def transcript(name: str) -> Transcript:
    return parse(snapshot(name))


def frame(turn: Turn, *, interrupted: bool = True, user_id: str = "") -> Frame:
    return Frame(turn.session.id, "", "/opencode", user_id, interrupted=interrupted, encoding=2)


def records(turn: Turn, *, interrupted: bool = True, user_id: str = "") -> list[Record]:
    return list(encoder.encode(turn, frame(turn, interrupted=interrupted, user_id=user_id)))


def spans(turn: Turn, *, interrupted: bool = True, user_id: str = "") -> list[Seen]:
    return seen(*(record.body for record in records(turn, interrupted=interrupted, user_id=user_id)))


def fresh(name: str) -> Turn:
    """The first turn of a recording, in a session of its own: no receiver has seen its ids."""
    turn = transcript(name).turns[0]
    return replace(turn, session=replace(turn.session, id=f"ses_{uuid.uuid4().hex}"))


def asking(turn: Turn, text: str) -> Turn:
    """The turn, asked in other words."""
    return replace(
        turn,
        messages=tuple(
            replace(one, parts=tuple(replace(p, text=text) if isinstance(p, Text) else p for p in one.parts))
            if isinstance(one, User)
            else one
            for one in turn.messages
        ),
    )


def with_tools(turn: Turn, count: int, output: str) -> Turn:
    """Its first call that used one made so many calls of the tool at once, and all of them said this."""
    call = next(one for one in turn.messages if any(isinstance(part, Tool) for part in one.parts))
    tool = next(part for part in call.parts if isinstance(part, Tool))
    tools = tuple(replace(tool, id=f"prt_{number}", output=output) for number in range(count))
    return replace(turn, messages=(turn.messages[0], replace(call, parts=tools)))

"""Encodes spans as the body of a POST to `/v1/traces`: an `ExportTraceServiceRequest` of OTLP 1, in Protocol Buffers.

    ExportTraceServiceRequest   1 resource_spans
      ResourceSpans             1 resource, 2 scope_spans, 3 schema_url
        ScopeSpans              1 scope, 2 spans, 3 schema_url
          Span                  1 trace, 2 span, 4 parent, 5 name, 6 kind, 7 start, 8 end, 9 attributes, 11 events,
                                15 status

The bytes follow from the values alone: no clock, no program version, no destination.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from app.exporters.otlp import protobuf as wire
from app.exporters.otlp.messages import cut
from app.exporters.otlp.spans import Error, Span, Value
from app.transcript.model import Json

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"
"""The conventions that the attributes keep to. Later ones rename some without a stable release in sight."""
SCOPE = "opencode-helicone"
_NS_IN_MS = 1_000_000
_ERROR = 2
_JSON = frozenset({"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.call.arguments"})
_NOT_WRITTEN = frozenset(
    {
        *("gen_ai.operation.name", "gen_ai.conversation.id", "session.id", "opencode.session.id", "opencode.turn.id"),
        *(
            "gen_ai.provider.name",
            "gen_ai.request.model",
            "gen_ai.tool.name",
            "gen_ai.tool.call.id",
            "gen_ai.tool.type",
        ),
        *("input.mime_type", "output.mime_type", "service.name"),
    }
)
"""Attributes whose texts nobody wrote, and the redaction leaves as they are."""


def request(spans: list[bytes], version: str | None) -> bytes:
    """`version`: OpenCode's."""
    resource = wire.message(1, *_attributes(1, {"service.name": "opencode", "service.version": version}))
    scope = wire.message(1, wire.text(1, SCOPE))
    schema = wire.text(3, SCHEMA_URL)
    return wire.message(1, resource, wire.message(2, scope, *spans, schema), schema)


def encoded(span: Span, trace: bytes) -> bytes:
    """A span, as the field of its scope that it is."""
    error_type = None if span.error is None else span.error.type
    return wire.message(
        2,
        wire.message(1, trace),
        wire.message(2, span.id),
        wire.message(4, span.parent) if span.parent else b"",
        wire.text(5, span.name),
        wire.whole(6, span.kind),
        wire.fixed(7, span.start_ms * _NS_IN_MS),
        wire.fixed(8, span.end_ms * _NS_IN_MS),
        *_attributes(9, {**span.attributes, "error.type": error_type}),
        *([] if span.error is None else _failed(span.error, span.end_ms)),
    )


def _failed(error: Error, at_ms: int) -> Iterator[bytes]:
    if error.is_exception:
        told = {"exception.type": error.type, "exception.message": error.message}
        yield wire.message(11, wire.fixed(1, at_ms * _NS_IN_MS), wire.text(2, "exception"), *_attributes(3, told))
    message = wire.text(2, cut(error.message)) if error.message else b""
    yield wire.message(15, message, wire.whole(3, _ERROR))


def _attributes(field: int, values: Mapping[str, Value | None]) -> Iterator[bytes]:
    for name, value in values.items():
        if value is not None:
            yield wire.message(field, wire.text(1, name), wire.message(2, _value(value)))


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return wire.whole(2, value)
        case str():
            return wire.text(1, cut(value))
        case int():
            return wire.whole(3, value)
        case float():
            return wire.double(4, value)
        case _:
            return wire.message(5, *(wire.message(1, _value(one)) for one in value))


def texts(body: bytes) -> list[Json]:
    """What in a body was written by a person, a model or a tool. Raises WireError for what is no such body."""
    found: list[Json] = []
    for span in _spans(body):
        told = dict(_strings(span, 9))
        for event in _inside(span, 11):
            told |= dict(_strings(event, 3))
        status = [_text(text) for status in _inside(span, 15) for text in _inside(status, 2)]
        names = [_text(name) for name in _inside(span, 5)]
        written = {
            name: json.loads(text) if name in _JSON else text for name, text in told.items() if name not in _NOT_WRITTEN
        }
        found.append({**written, "status": [*status], "name": [*names]})
    return found


def _spans(body: bytes) -> Iterator[bytes]:
    for resource_spans in _inside(body, 1):
        for scope_spans in _inside(resource_spans, 2):
            yield from _inside(scope_spans, 2)


def _strings(holder: bytes, field: int) -> Iterator[tuple[str, str]]:
    for attribute in _inside(holder, field):
        value = next(_inside(attribute, 2))
        for text in _inside(value, 1):
            yield _text(next(_inside(attribute, 1))), _text(text)


def _inside(data: bytes, field: int) -> Iterator[bytes]:
    for number, value in wire.fields(data):
        if number == field and isinstance(value, bytes):
            yield value


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")

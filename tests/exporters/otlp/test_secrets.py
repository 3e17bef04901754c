"""A secret in every text of a turn is in no byte of what is sent: names of spans, events and statuses included."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import pytest

from app.privacy.redact import _STAYS, Redaction, redact_turn
from app.transcript.model import Tool
from tests.support import recorded
from tests.support.spans import records, seen, transcript

T = TypeVar("T")
SECRET = "sk-" + "ant-api03-" + "Zm9vYmFyYmF6" * 7 + "AA"


def planted(value: T) -> T:
    """The same with the secret in every text that the redaction sees."""
    made: dict[str, Any] = {}
    for one in fields(value):  # type: ignore[arg-type]
        inner = getattr(value, one.name)
        if (type(value), one.name) in _STAYS:
            continue
        if isinstance(inner, str):
            made[one.name] = f"{inner} {SECRET}"
        elif isinstance(value, Tool) and one.name == "input":
            made[one.name] = {SECRET: [SECRET, inner]}
        elif isinstance(inner, tuple):
            made[one.name] = tuple(planted(each) for each in inner)
        elif is_dataclass(inner):
            made[one.name] = planted(inner)
    return replace(value, **made)  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["b_tools", "d_error_401", "e_abort_api", "f_subagent", "l_reasoning"])
def test_a_secret_in_every_text_is_in_no_byte(name: str) -> None:
    assert name in recorded.names()
    for turn in map(planted, transcript(name).turns):
        (bare,) = records(turn)
        places = {place for span in seen(bare.body) for place in _places(span)}
        assert {"name", "status"} & places >= ({"name", "status"} if name == "d_error_401" else {"name"})
        (record,) = records(redact_turn(turn, Redaction.compile([])))
        assert SECRET.encode() not in record.body
        assert SECRET[10:].encode() not in record.body


def _places(span: Any) -> set[str]:
    """Where in a span the secret stands."""
    told = {"name": span.name, "status": span.status_message, "events": repr(span.events), **span.attributes}
    return {place for place, text in told.items() if SECRET in str(text)}

"""Masks: takes what a tenant's patterns match out of a log, before anything of it is kept.

    bytes of a log ─▶ its texts, escapes undone ─▶ [REDACTED] ─▶ bytes; the same ones where nothing matches

Patterns are those of a laptop's settings (RE2, whose time is linear), and see each text as they do there. What Helicone
knows a log by stays: request id, session (id, name, path), user, model, provider and times. Changed, they would make a
second log of one, or a second session. Names of fields stay as well, but for those of a tool's input, which a model has
made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from app.privacy.decode import View, layers
from app.privacy.redact import REDACTED, merged
from app.privacy.user_patterns import Pattern, compile_pattern
from app.receiver.manual_log import Object, clean, dumped

DEPTH_MAX = 100
"""What is nested deeper is masked whole. A laptop sends no more than 70."""
_ENVELOPE = frozenset({"providerRequest", "providerResponse", "timing", "provider"})
_KEPT_META = frozenset(
    {
        "helicone-request-id",
        "helicone-session-id",
        "helicone-session-name",
        "helicone-session-path",
        "helicone-user-id",
        "helicone-model-override",
    }
)
_KEPT = frozenset({"model", "_type", "toolName"})
"""Of a request or response, what Helicone takes the model from."""


def masked(raw: bytes, patterns: tuple[str, ...]) -> bytes:
    """The log without what the patterns match. What is no JSON object comes back as it is: nobody takes it.

    Raises PatternError for patterns that cannot be compiled.
    """
    compiled = _compiled(patterns)
    masks = _Masks(compiled)
    try:
        body = json.loads(raw.decode("utf-8", "replace"), object_pairs_hook=masks.object_of)
    except (ValueError, RecursionError):
        return raw
    if not compiled or not isinstance(body, dict):
        return raw
    made = masks.envelope(body)
    return dumped(made).encode() if masks.is_changed else raw


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> tuple[Pattern, ...]:
    return tuple(compile_pattern(number, pattern) for number, pattern in enumerate(patterns, start=1))


class _Masks:
    """Of one log."""

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        self._patterns = patterns
        self._seen: dict[str, str] = {}
        """A request stands in its log twice."""
        self.is_changed = False

    def object_of(self, pairs: list[tuple[str, Any]]) -> Object:
        """Of a name that stands twice the last value counts, as for whoever reads the log; the others must go."""
        made = dict(pairs)
        self.is_changed |= len(made) < len(pairs)
        return made

    def envelope(self, body: Object) -> Object:
        """All of a log. The fields beside the envelope's own are the request once more."""
        request = self._fields({name: value for name, value in body.items() if name not in _ENVELOPE})
        own: dict[str, Callable[[Any], Any]] = {
            "providerRequest": self._part,
            "providerResponse": self._part,
            "timing": lambda value: self._value(value, 1),
            "provider": self._kept,
        }
        return {name: own[name](value) if name in own else request[name] for name, value in body.items()}

    def _part(self, part: Any) -> Any:
        """Request or response, with what is said about it."""
        if not isinstance(part, dict):
            return self._value(part, 1)
        own: dict[str, Callable[[Any], Any]] = {"json": self._fields, "meta": self._meta}
        return {
            name: own[name](value) if name in own and isinstance(value, dict) else self._value(value, 1)
            for name, value in part.items()
        }

    def _fields(self, value: Object) -> Object:
        """Of a request or response."""
        kind = value.get("_type")
        kept = {*_KEPT, "name"} if kind == "data" else _KEPT
        return {
            name: self._kept(inner)
            if name in kept
            else self._value(inner, 1, is_content=(name, kind) == ("input", "tool"))
            for name, inner in value.items()
        }

    def _meta(self, meta: Object) -> Object:
        return {
            name: self._kept(value) if name.lower() in _KEPT_META else self._value(value, 1)
            for name, value in meta.items()
        }

    def _kept(self, value: Any) -> Any:
        """What Helicone knows a log by is a text; anything else in its place is masked like all the rest."""
        return value if isinstance(value, str) else self._value(value, 1)

    def _value(self, value: Any, depth: int, *, is_content: bool = False) -> Any:
        """`is_content`: all of it was made up by a model, names and numbers too."""
        if isinstance(value, str):
            return self._text(value)
        if depth > DEPTH_MAX and isinstance(value, dict | list):
            self.is_changed = True
            return REDACTED
        if isinstance(value, list):
            return [self._value(inner, depth + 1, is_content=is_content) for inner in value]
        if isinstance(value, dict):
            return self._object(value, depth, is_content=is_content)
        if is_content and isinstance(value, int | float) and not isinstance(value, bool):
            digits = json.dumps(value)
            shown = self._text(digits)
            return value if shown == digits else shown
        return value

    def _object(self, value: Object, depth: int, *, is_content: bool) -> Object:
        made: Object = {}
        for number, (name, inner) in enumerate(value.items()):
            shown = self._text(name) if is_content else name
            # Two names may look alike now; neither takes the other's place.
            while shown in made or (shown != name and shown in value):
                shown = f"{shown} {number}"
            made[shown] = self._value(inner, depth + 1, is_content=is_content)
        return made

    def _text(self, value: str) -> str:
        if value not in self._seen:
            self._seen[value] = self._masked(value)
        return self._seen[value]

    def _masked(self, value: str) -> str:
        data = clean(value).encode()
        spans = [
            view.source(*span) for view in layers(View(data)) for one in self._patterns for span in one.spans(view.data)
        ]
        if not spans:
            return value
        self.is_changed = True
        pieces, at = [], 0
        for start, end in merged(spans):
            pieces += [data[at:start], REDACTED.encode()]
            at = end
        return b"".join((*pieces, data[at:])).decode("utf-8", "replace")

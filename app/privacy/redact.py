"""Redacts every text of a turn: finds secrets by all rules, and masks them.

    text ▶ blobs described ▶ known values ▶ built-in rules ▶ user patterns ▶ "… [REDACTED] …"

`redact_turn` and `redact_session` go over every string that would leave. Identity stays: the ids, provider, model and
tool name that Helicone tells records apart by; `identity_hits` says which patterns would have hit it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from operator import is_, itemgetter
from typing import Any, TypeVar

from app.privacy.decode import View, joined, layers, unpacked
from app.privacy.known_secrets import Search, search_for, traces_of
from app.privacy.named_json import secrets_beside
from app.privacy.rules import broken_secrets, rules, secrets
from app.privacy.scout import Hits, Scout, scout
from app.privacy.secret_names import is_named
from app.privacy.stretches import Stretch, stretches
from app.privacy.user_patterns import Pattern, PatternError, compile_pattern
from app.runtime.header_value import readable
from app.transcript.attachments import strip_blobs
from app.transcript.blobs import described_pieces
from app.transcript.model import (
    Assistant,
    File,
    Json,
    Other,
    Reasoning,
    Retry,
    Session,
    Subtask,
    Text,
    Tool,
    Transcript,
    Turn,
    User,
)

__all__ = [
    "HitCounts",
    "PatternError",
    "Redaction",
    "identity_hits",
    "redact_session",
    "redact_turn",
]

REDACTED = "[REDACTED]"
KNOWN = "known"
_DEPTH_MAX = 64
_SPELLED_MAX = 64
"""Latin letters that stand for one character."""
_EDGE = 64
"""What is found so near to the end of a stretch may go on behind it."""
_CLEAN_CHARACTERS_MAX, _CLEAN_MAX = 64, 4096
_DECODED_COST = 32
"""How much more a byte of a stretch costs than one that is only read."""
T = TypeVar("T")
_Span = tuple[int, int]
Found = dict[str, list[_Span]]


class HitCounts(Counter[str]):
    """How often each name has hit; and of what was a known value, wherever it stood, a digest."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[bytes] = set()


@dataclass(frozen=True, slots=True)
class Redaction:
    """Compiled rules. Holds known values: never printed (`repr=False`), never stored."""

    patterns: tuple[Pattern, ...]
    secrets: bool
    known: Search | None = field(repr=False)
    """A search for the known values in all their forms."""
    traces: frozenset[bytes] = field(default=frozenset(), repr=False)
    """A text without them holds no known value."""
    done: Mapping[str, tuple[str, HitCounts]] = field(default_factory=dict, repr=False, compare=False)
    """What some texts have become, and what was hit in them, before they are asked for."""
    _clean: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Short texts in which nothing was found: names and words come again and again. No copy with other rules has it."""

    @staticmethod
    def compile(patterns: Sequence[str], *, secrets: bool = True, known_values: Sequence[str] = ()) -> Redaction:
        """`secrets`: whether the built-in rules apply; known values are masked in any case. Raises PatternError."""
        numbered = tuple(compile_pattern(number, pattern) for number, pattern in enumerate(patterns, start=1))
        return Redaction(numbered, secrets, search_for(known_values), traces_of(known_values))

    def text(self, value: str, hits: Counter[str] | None = None) -> str:
        """The value with all that matches as `[REDACTED]`. Lone surrogates become U+FFFD, as UTF-8 has none."""
        if value in self._clean:
            return value
        if value not in self.done:
            shown = finished(self.steps(value, hits))
            if shown is value and len(value) <= _CLEAN_CHARACTERS_MAX:
                if len(self._clean) >= _CLEAN_MAX:
                    self._clean.clear()
                self._clean.add(value)
            return shown
        shown, of_it = self.done[value]
        if hits is not None:
            hits.update(of_it)
        if isinstance(hits, HitCounts):
            hits.known |= of_it.known
        return shown

    def steps(self, value: str, hits: Counter[str] | None = None) -> Generator[int, None, str]:
        """Redact as `text`, pausing so that something else can be done; each pause says how many bytes are done."""
        text, data = _encoded(strip_blobs(value))
        yield len(data)
        found = yield from self._found(data)
        if not any(found.values()):
            return text  # which may be long, and is not made once more
        if isinstance(hits, HitCounts):
            hits.known |= {hashlib.sha256(data[start:end]).digest() for start, end in found[KNOWN]}
        del text  # of what is long no form is kept that is not needed
        data = _replaced(data, found, hits)
        return data.decode("utf-8", "replace")

    def json(self, value: Json, hits: Counter[str] | None = None) -> Json:
        """Keys and values, recursively; the value itself where nothing in it was taken out.

        What stands under a key named like a secret is replaced whole.
        """
        return self._json(value, hits, 0)

    def _json(self, value: Json, hits: Counter[str] | None, depth: int, name: str = "") -> Json:
        if isinstance(value, str):
            return self.text(value, hits)
        if isinstance(value, bool) or value is None:
            return value
        if depth > _DEPTH_MAX:
            return _masked("nested too deep", hits)
        if isinstance(value, list):
            described = described_pieces(value)
            items: list[Json] = value if described is None else [*described]
            beside = self._beside(items, hits, name)
            made = [self._json(beside.get(at, inner), hits, depth + 1, name) for at, inner in enumerate(items)]
            return value if len(made) == len(value) and all(map(is_, made, value)) else made
        if isinstance(value, dict):
            return self._object(value, hits, depth, name)
        digits = json.dumps(value)
        shown = self.text(digits, hits)
        return value if shown == digits else shown

    def _object(self, value: dict[str, Json], hits: Counter[str] | None, depth: int, name: str) -> dict[str, Json]:
        made: dict[str, Json] = {}
        beside = self._beside(value, hits, name)
        for number, (key, inner) in enumerate(value.items()):
            is_secret = self.secrets and inner and not isinstance(inner, bool) and is_named(key)
            shown = self.text(key, hits)
            # Two keys may look alike now; neither takes the other's place.
            unique = f"{shown} {number}" if shown in made else shown
            made[unique] = (
                _masked("named value", hits) if is_secret else self._json(beside.get(key, inner), hits, depth + 1, key)
            )
        is_same = all(map(is_, made, value)) and all(map(is_, made.values(), value.values()))
        return value if is_same else made

    def _beside(
        self, value: dict[str, Json] | list[Json], hits: Counter[str] | None, name: str
    ) -> dict[str | int, str]:
        found = secrets_beside(value, name, REDACTED) if self.secrets else {}
        if found and hits is not None:
            hits["assignment"] += len(found)
        return found

    def _found(self, data: bytes) -> Generator[int, None, Found]:
        """Ranges of the text by the name of what found them."""
        found: Found = defaultdict(list)
        text = View(data)
        if self.secrets or self.known is not None:
            yield from self._find_secrets(text, found)
        for pattern in self.patterns:
            found[pattern.name] = [view.source(*span) for view in layers(text) for span in pattern.spans(view.data)]
            yield len(data)
        return found

    def _find_secrets(self, text: View, found: Found) -> Generator[int, None, None]:
        size = len(text.data)
        hits = self._scout.look(text)
        yield size
        self._look(text, hits, found)
        yield size
        plain = sorted((start, end, name) for name, spans in found.items() for start, end in spans)
        seen = Stretch(0, 0)
        to_decode = stretches(text.data, hits, self._scout)
        yield size
        for stretch in to_decode:
            # One that went on has been over the next ones, too.
            if not stretch.is_within(seen):
                seen = self._look_into(text, stretch, found, plain)
                yield _DECODED_COST * (seen.end - seen.start)

    def _look_into(self, text: View, stretch: Stretch, found: Found, plain: Sequence[tuple[int, int, str]]) -> Stretch:
        """What is found once a stretch is decoded; it is a longer one, returned, where that goes on up to its end.

        `plain`: what is found as it stands, in order. That goes no further, or a stretch is around it already.
        """
        start, end, size = stretch.start, stretch.end, len(text.data)
        while True:
            here = set(plain[bisect_left(plain, (start,)) : bisect_left(plain, (end,))])
            inside = self._decoded(text.part(start, end), stretch, {(name, begin) for begin, _, name in here})
            spans = [span for name, some in inside.items() for span in some if (*span, name) not in here]
            goes_on_left = start > 0 and any(begin < start + _EDGE for begin, _ in spans)
            goes_on_right = end < size and any(upto > end - _EDGE for _, upto in spans)
            if not goes_on_left and not goes_on_right:
                break
            length = end - start
            start = max(0, start - length) if goes_on_left else start
            end = min(size, end + length) if goes_on_right else end
        for name, some in inside.items():
            found[name] += some
        return replace(stretch, start=start, end=end)

    def _decoded(self, part: View, stretch: Stretch, begun: set[tuple[str, int]]) -> Found:
        inside: Found = defaultdict(list)
        bare = layers(part)
        whole = joined(bare[-1]) if stretch.over_lines else None
        for view in bare[1:]:
            self._look(view, self._scout.look(view), inside)
        if stretch.packed:
            for packed in unpacked(whole, whole.starts) if whole else unpacked(bare[-1]):
                inner = layers(packed)
                for view in inner:
                    self._look(view, self._scout.look(view), inside)
                if held := joined(inner[-1]):
                    self._look_over_line_ends(held, begun, inside)
        if whole:
            self._look_over_line_ends(whole, begun, inside)
        return inside

    def _look(self, view: View, hits: Hits, found: Found) -> None:
        self._look_for_known(view, hits, found)
        for name, start, end in secrets(view, self._scout.heads_among(hits)):
            found[name].append(view.source(start, end))

    def _look_over_line_ends(self, view: View, begun: set[tuple[str, int]], found: Found) -> None:
        hits = self._scout.look(view)
        self._look_for_known(view, hits, found)
        begun = begun | {(name, start) for name, spans in found.items() for start, _ in spans}
        for name, start, end in broken_secrets(view, self._scout.heads_among(hits), begun):
            found[name].append(view.source(start, end))

    def _look_for_known(self, view: View, hits: Hits, found: Found) -> None:
        if self.known is not None and self._scout.sees_known(hits):
            found[KNOWN] += (view.source(*span) for span in self.known.spans(view.data))

    @property
    def _scout(self) -> Scout:
        return scout(self.traces, secrets=self.secrets)


def finished(steps: Generator[int, None, T]) -> T:
    """What they come to, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _masked(why: str, hits: Counter[str] | None) -> str:
    if hits is not None:
        hits[why] += 1
    return REDACTED


def _encoded(value: str) -> tuple[str, bytes]:
    """The text with nothing but whole characters, and the same in UTF-8."""
    try:
        return value, value.encode()
    except UnicodeEncodeError:
        return _encoded(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


@cache
def _order() -> Mapping[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys((KNOWN, *(rule.name for rule in rules()))))}


def _replaced(data: bytes, found: dict[str, list[_Span]], hits: Counter[str] | None) -> bytes:
    """Counts for each name what no name before it, which is more certain, has covered."""
    covered: list[_Span] = []
    order = _order()
    for name in sorted(found, key=lambda name: order.get(name, len(order))):
        spans = found[name]
        fresh = [span for span in merged(spans) if not _is_within(span, covered)]
        if fresh and hits is not None:
            hits[name] += len(fresh)
        covered = merged([*covered, *fresh]) if fresh else covered
    pieces: list[bytes | memoryview] = []
    at, view = 0, memoryview(data)
    for start, end in covered:
        pieces += (view[at:start], REDACTED.encode())
        at = end
    return b"".join((*pieces, view[at:]))


def merged(spans: list[_Span]) -> list[_Span]:
    """In order, and none of them touches another."""
    made: list[_Span] = []
    for start, end in sorted(spans):
        if made and start <= made[-1][1]:
            made[-1] = (made[-1][0], max(end, made[-1][1]))
        else:
            made.append((start, end))
    return made


def _is_within(span: _Span, covered: list[_Span]) -> bool:
    at = bisect_right(covered, span[0], key=itemgetter(0)) - 1
    return at >= 0 and span[1] <= covered[at][1]


_STAYS = frozenset(
    {
        *(
            (kind, "id")
            for kind in (Session, Turn, User, Assistant, Text, Reasoning, File, Tool, Subtask, Retry, Other)
        ),
        *((Session, "parent_id"), (Assistant, "parent_id"), (Assistant, "provider_id"), (Assistant, "model_id")),
        *((Tool, "call_id"), (Tool, "name"), (Tool, "status"), (Other, "type")),
        *((Turn, "digest"), (Turn, "faults"), (Transcript, "faults"), (Transcript, "unreadable")),
    }
)
"""What Helicone tells records apart by, and words of OpenCode's or this program's own. All other text is redacted."""
_WITHOUT_TEXT = frozenset({"int", "int | None", "float", "bool"})
_NAMES = frozenset({"agent", "mode", "finish", "directory", "origin"})


def redact_session(session: Session, redaction: Redaction, hits: Counter[str] | None = None) -> Session:
    return _redacted(session, redaction, hits)


def redact_turn(turn: Turn, redaction: Redaction, hits: Counter[str] | None = None) -> Turn:
    return _redacted(turn, redaction, hits)


def _redacted(value: T, redaction: Redaction, hits: Counter[str] | None) -> T:
    """A value of a transcript, with all that is inside of it; itself where nothing in it was taken out."""
    kind: Any = type(value)
    made: dict[str, Any] = {}
    for name in _fields(kind):
        inner, counted = getattr(value, name), None if name == "origin" else hits  # mostly the directory: counted once
        shown = inner
        if name == "input":
            shown = redaction.json(inner, counted)
        elif isinstance(inner, str):
            shown = _named(inner, redaction, counted) if name in _NAMES else redaction.text(inner, counted)
        elif isinstance(inner, tuple):
            some = tuple(_redacted(one, redaction, counted) for one in inner)
            shown = inner if all(map(is_, some, inner)) else some
        elif is_dataclass(inner):
            shown = _redacted(inner, redaction, counted)
        if shown is not inner:
            made[name] = shown
    changed: T = replace(value, **made) if made else value  # type: ignore[type-var]  # all of them are dataclasses
    return changed


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(
        field.name for field in fields(kind) if (kind, field.name) not in _STAYS and field.type not in _WITHOUT_TEXT
    )


def _named(value: str, redaction: Redaction, hits: Counter[str] | None) -> str:
    """The same of what is spelled in Latin letters before it leaves: a pattern may be written as it is seen then."""
    shown = redaction.text(value, hits)
    spelled = readable(shown, _SPELLED_MAX * len(shown))
    if spelled in ("", shown):
        return shown
    left = redaction.text(spelled, hits)
    return shown if left == spelled else left


def identity_hits(turn: Turn, redaction: Redaction) -> Counter[str]:
    """How often each user pattern matches what is not redacted, because Helicone tells records apart by it."""
    hits: Counter[str] = Counter()
    for text in set(_identity(turn)):
        for pattern in redaction.patterns:
            hits[pattern.name] += sum(1 for _ in pattern.spans(_encoded(text)[1]))
    return +hits


def _identity(turn: Turn) -> Iterator[str]:
    yield turn.session.id
    yield turn.session.parent_id or ""
    yield turn.id
    for message in turn.messages:
        yield message.id
        if isinstance(message, Assistant):
            yield from (message.parent_id, message.provider_id, message.model_id)
        for part in message.parts:
            yield part.id
            if isinstance(part, Tool):
                yield from (part.call_id, part.name)
                for inner in part.child.turns if part.child else ():
                    yield from _identity(inner)

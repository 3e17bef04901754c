"""Turns as nobody has recorded them: odd texts, clocks that step back, subagents in subagents, answers cut off."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from app.transcript.model import (
    Assistant,
    Failure,
    File,
    Json,
    Message,
    Other,
    Part,
    Reasoning,
    Retry,
    Session,
    Subtask,
    Text,
    Tokens,
    Tool,
    Transcript,
    Turn,
    User,
)

TIMES_MS = st.integers(0, 8_640_000_000_000) | st.integers(1_764_000_000_000, 1_764_000_100_000)
MAYBE_MS = st.none() | TIMES_MS
TEXTS = st.text(st.characters(), max_size=30) | st.sampled_from(["", "\0", "\ud800", 'a "quoted" \\u0000 \\', "😀"])
MAYBE = st.none() | TEXTS
NAMES = st.text(st.characters(min_codepoint=1), min_size=1, max_size=200)
JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
COUNTS = st.integers(0, 2**53)
FAILURES = st.builds(Failure, NAMES, MAYBE, st.none() | st.integers(0, 999))
SESSIONS = st.builds(
    Session,
    NAMES,
    MAYBE,
    MAYBE,
    TIMES_MS,
    TIMES_MS,
    MAYBE_MS,
    MAYBE,
    MAYBE,  # id, parent, version, times, texts
)
_TOKENS = st.none() | st.builds(Tokens, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
_SAID: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, st.just("?"), MAYBE, st.booleans(), MAYBE_MS, MAYBE_MS),
    st.builds(Reasoning, st.just("?"), MAYBE, MAYBE_MS, MAYBE_MS),
    st.builds(File, st.just("?"), MAYBE, MAYBE, st.none() | COUNTS),
    st.builds(Subtask, st.just("?"), MAYBE),
    st.builds(Retry, st.just("?"), st.none() | COUNTS, st.none() | FAILURES),
    st.builds(Other, st.just("?"), NAMES),
)
_USERS = st.builds(User, st.just("?"), st.just(0), TIMES_MS, MAYBE, MAYBE, st.lists(_SAID, max_size=4).map(tuple))


def _tools(children: st.SearchStrategy[Transcript | None]) -> st.SearchStrategy[Part]:
    return st.builds(
        Tool,
        id=st.just("?"),
        call_id=NAMES,
        name=NAMES,
        status=st.sampled_from(["pending", "running", "completed", "error"]),
        input=JSON,
        output=MAYBE,
        error=MAYBE,
        title=MAYBE,
        exit_code=st.none() | st.integers(-(2**53), 2**53),
        truncated=st.booleans(),
        start_ms=MAYBE_MS,
        end_ms=MAYBE_MS,
        child=children,
    )


def _turns(children: st.SearchStrategy[Transcript | None]) -> st.SearchStrategy[Turn]:
    answers = st.builds(
        Assistant,
        id=st.just("?"),
        index=st.just(0),
        parent_id=NAMES,
        created_ms=TIMES_MS,
        completed_ms=MAYBE_MS,
        agent=MAYBE,
        mode=MAYBE,
        provider_id=NAMES,
        model_id=NAMES,
        cost_usd=st.floats(0, 1e6),
        tokens=_TOKENS,
        finish=st.none() | st.sampled_from(["stop", "tool-calls", "content-filter", "length", "other"]) | TEXTS,
        summary=st.booleans(),
        failure=st.none() | FAILURES,
        parts=st.lists(_SAID | _tools(children), max_size=3).map(tuple),
    )
    messages = st.lists(_USERS | answers, min_size=1, max_size=3).map(tuple)
    return st.builds(Turn, SESSIONS, NAMES, messages, st.booleans(), TIMES_MS, st.just("0" * 64))


def _named(turn: Turn, session: str = "ses", at: int = 0) -> Turn:
    """Sessions, messages and parts by names of their own, as the parser gives them."""
    messages: list[Message] = []
    for index, message in enumerate(turn.messages):
        below = f"{session}.{index}"
        parts = tuple(_part(part, f"prt_{number}", f"{below}.{number}") for number, part in enumerate(message.parts))
        messages.append(replace(message, id=f"msg_{at}_{index}", index=index, parts=parts))
    return replace(turn, session=replace(turn.session, id=session), messages=tuple(messages))


def _part(part: Part, name: str, session: str) -> Part:
    if not isinstance(part, Tool) or part.child is None:
        return replace(part, id=name)
    turns = tuple(_named(turn, session, at) for at, turn in enumerate(part.child.turns))
    child = replace(part.child, session=replace(part.child.session, id=session), turns=turns)
    return replace(part, id=name, child=child)


def _children(turns: st.SearchStrategy[Turn]) -> st.SearchStrategy[Transcript | None]:
    return st.none() | st.builds(
        lambda session, found: Transcript(session, tuple(replace(turn, session=session) for turn in found)),
        SESSIONS,
        st.lists(turns, max_size=2, unique_by=lambda turn: turn.id),
    )


def turns() -> st.SearchStrategy[Turn]:
    """With subagents down to the second floor."""
    lowest = _turns(st.none())
    return _turns(_children(_turns(_children(lowest)))).map(_named)

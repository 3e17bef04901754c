"""One leaf of a recording is another: it costs its own turn at most, and every other turn keeps its key and bytes.

`LEAVES=20000 pytest tests/transcript/test_leaves.py` looks longer.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.exporters.encoder import Frame
from app.exporters.helicone.records import encode_session, encode_turn
from app.transcript.model import Tool, Transcript, Turn
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.mutants import Steps, places

EXAMPLES = int(os.environ.get("LEAVES", "300"))
GONE = object()
VALUES: tuple[Any, ...] = (
    GONE, None, True, False, 0, -1, 1, 1.5, -0.25, 12.5, 2**53, -(2**63), 1e20, 10**400, math.nan, math.inf, "", "x",
    "12", "a/b", "session", "assistant", "x" * 600, "\ud800", "\0", [], {}, [None], {"value": "x"},
    [[]] * 3, json.loads("[" * 150 + "]" * 150),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recording:
    snapshot: str
    """JSON."""
    turns: dict[str, tuple[Turn, list[bytes]]]
    leaves: list[tuple[Steps, str | None]]
    """Each with the turn that it stands in; None for what all turns share."""


def snapshots() -> Iterator[tuple[str, str]]:
    for name in recorded.names():
        for root, snapshot in recorded.replayed(name).items():
            for session in snapshot["sessions"]:  # as OpenCode lists them
                session["messages"].sort(key=lambda one: (one["info"]["time"]["created"], one["info"]["id"]))
            yield f"{name} {root}", json.dumps(snapshot)


@cache
def named() -> dict[str, str]:
    return dict(snapshots())


@cache
def recording(name: str) -> Recording:
    value = json.loads(named()[name])
    transcript = parse(value)
    owners = dict(owned(transcript))
    found = {turn.id: (turn, encoded(turn)) for turn in transcript.turns}
    return Recording(named()[name], found, list(leaves(value, owners, transcript.session.id)))


def owned(transcript: Transcript, owner: str | None = None) -> Iterator[tuple[str, str]]:
    """(message or subagent's session, the root's turn that holds it)."""
    for turn in transcript.turns:
        for message in turn.messages:
            yield f"{transcript.session.id} {message.id}", owner or turn.id
            for part in message.parts:
                if isinstance(part, Tool) and part.child is not None:
                    yield part.child.session.id, owner or turn.id
                    yield from owned(part.child, owner or turn.id)


def leaves(value: Any, owners: dict[str, str], root: str) -> Iterator[tuple[Steps, str | None]]:
    for path in places(value):
        if path[0] != "sessions" or len(path) < 4 or path[2] not in {"info", "messages"}:
            continue
        session = value["sessions"][path[1]]
        name = session["info"]["id"]
        if path[2] == "messages":
            yield path, owners[f"{name} {session['messages'][path[3]]['info']['id']}"]
        elif (name, path[3]) != (root, "id"):  # without it there is no session
            yield path, owners.get(name)


def encoded(turn: Turn) -> list[bytes]:
    frame = Frame("ses_root", "opencode: project", "/opencode", "", interrupted=True, encoding=2)
    return [record.body for record in encode_turn(turn, frame)]


def changed(recording: Recording, path: Steps, value: Any) -> Any:
    whole = json.loads(recording.snapshot)
    holder = whole
    for step in path[:-1]:
        holder = holder[step]
    if value is GONE and path[-2] == "messages":
        holder[path[-1]] = None  # a message less would be another session
    elif value is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = copy.deepcopy(value)
    return whole


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_leaf_costs_its_own_turn_at_most(data: st.DataObject) -> None:
    one = recording(data.draw(st.sampled_from(sorted(named()))))
    path, owner = data.draw(st.sampled_from(one.leaves))
    value = data.draw(st.sampled_from(VALUES))
    transcript = parse(changed(one, path, value))
    after = {turn.id: turn for turn in transcript.turns}
    for name, (before, bodies) in one.turns.items():
        if name == owner:
            continue
        assert after[name].digest == before.digest, (path, name)
        assert encoded(after[name]) == bodies, (path, name)
    lost = {one.turn for one in transcript.unreadable}
    shown = {message.id for turn in transcript.turns for message in turn.messages}
    own = {message.id for message in one.turns[owner][0].messages} if owner is not None else shown
    assert lost or own & shown, path  # an answer without its parent is a turn of its own
    for turn in transcript.turns:
        assert encoded(turn)
    frame = Frame("ses_root", "opencode: project", "/opencode", "", interrupted=True, encoding=2)
    assert encode_session(transcript.session, frame).body

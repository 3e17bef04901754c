"""Stats: sums up what OpenCode's calls came to, and says how much of it was delivered."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.ledger.counters import Counter, counters
from app.ledger.listing import delivered_turns
from app.operations.titles import directories_of, project_name, unknown_project
from app.sources.opencode.rows import Head, Usage
from app.sources.opencode.store import Store

GROUPS = ("day", "model", "project", "agent", "session")


@dataclass(slots=True)
class Sum:
    """Of one day, model, project, agent or session; or of all."""

    name: str
    """For a session its id, for a project its folder."""
    title: str = ""
    """What people call these two."""
    turns: int = 0
    """Those of subagents count with the turn that called them."""
    delivered: int = 0
    """Of these turns."""
    calls: int = 0
    errors: int = 0
    """Calls that failed or were aborted."""
    failed_tools: int = 0
    """Tools that were called, and failed."""
    input_tokens: int = 0
    """Without those that came out of a cache."""
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    """Reasoning included."""
    cost_usd: float = 0.0
    last_ms: int = 0
    """When OpenCode was last at it: of a session and its subagents; 0 of another sum."""

    def add(self, one: Usage) -> None:
        self.calls += one.calls
        self.errors += one.errors
        self.failed_tools += one.failed_tools
        self.input_tokens += one.input_tokens
        self.cache_read_tokens += one.cache_read_tokens
        self.cache_write_tokens += one.cache_write_tokens
        self.output_tokens += one.output_tokens
        self.cost_usd += one.cost_usd


@dataclass(frozen=True, slots=True)
class Stats:
    by: str
    since_ms: int
    sums: tuple[Sum, ...]
    """Days in order; others by their cost, the dearest first."""
    total: Sum
    counters: tuple[Counter, ...]
    """What the queue counted since, that day included."""


def read_stats(db: sqlite3.Connection, store: Store, by: str, since_ms: int, project: str | None = None) -> Stats:
    """Raises StoreError where OpenCode's store cannot be read, and UnknownProjectError."""
    with store.kept_open():
        used = store.usage(since_ms)
        heads = _heads(store, {one.session for one in used})
    if project is not None:
        there = directories_of(heads.values(), project) or unknown_project(heads.values(), project)
        used = [one for one in used if one.session in heads and heads[one.session].directory in there]
    delivered = delivered_turns(db, list({one.session for one in used}))
    sums: dict[str, Sum] = {}
    total = Sum("total")
    turns: set[tuple[str, str, str]] = set()
    name_of = _NAMES[by]
    for one in used:
        root = _root(heads, one.session)
        name = name_of(one, root)
        found = sums.get(name)
        if found is None:
            found = sums[name] = Sum(name, _title(by, root))
        found.add(one)
        total.add(one)
        if by == "session" and one.session in heads:
            found.last_ms = max(found.last_ms, heads[one.session].updated_ms)
        if one.session == root.id:
            _count_turn(one, delivered, turns, found)
            _count_turn(one, delivered, turns, total)
    ordered = sorted(sums.values(), key=lambda one: (-one.cost_usd, -one.calls, one.name))
    if by == "day":
        ordered.sort(key=lambda one: one.name)
    return Stats(by, since_ms, tuple(ordered), total, tuple(counters(db, since_ms)))


def _heads(store: Store, sessions: set[str]) -> dict[str, Head]:
    """Of these sessions and all above them: not of all that there ever were."""
    found: dict[str, Head] = {}
    wanted = {*sessions}
    while wanted:
        heads = store.heads(wanted)
        found |= heads
        wanted = {head.parent for head in heads.values() if head.parent is not None} - found.keys()
    return found


def _count_turn(one: Usage, delivered: set[tuple[str, str]], counted: set[tuple[str, str, str]], found: Sum) -> None:
    """Once for each sum, whatever models and agents had a part in it."""
    if (found.name, one.session, one.turn) not in counted:
        counted.add((found.name, one.session, one.turn))
        found.turns += 1
        found.delivered += (one.session, one.turn) in delivered


def _root(heads: Mapping[str, Head], session: str) -> Head:
    """The session above all that it was called from; itself where nobody called it."""
    seen: list[str] = []
    head = heads.get(session) or Head(session, None, "", 0, 0)
    while head.parent in heads and head.parent not in seen:
        seen.append(head.id)
        head = heads[str(head.parent)]
    return head


def _title(by: str, root: Head) -> str:
    return {"session": root.title, "project": project_name(root.directory)}.get(by, "")


_NAMES: Mapping[str, Callable[[Usage, Head], str]] = {
    "day": lambda one, _: one.day,
    "model": lambda one, _: one.model or "unknown",
    "project": lambda _, root: root.directory or "unknown",
    "agent": lambda one, _: one.agent or "unknown",
    "session": lambda _, root: root.id,
}


def names(sums: Sequence[Sum]) -> list[str]:
    """What each is called for people."""
    return [one.title or one.name for one in sums]

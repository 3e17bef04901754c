"""Sessions, for people: what each came to and how far it is at its destination; and one of them, turn by turn.

OpenCode's store tells what happened, the ledger what became of it. No text of a transcript is shown, nor kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.exporters.encoder import Frame, Record
from app.exporters.encoding import HELICONE
from app.ledger import listing, versions
from app.ledger.dead_letters import Attempt, attempts
from app.ledger.job import SESSION_RECORD
from app.ledger.listing import Filter, RecordState
from app.operations.jobs import ShownJob, shown_jobs
from app.operations.titles import Titles, project_name
from app.pages.waterfall import Span
from app.privacy.metadata_only import withhold_turn
from app.sources.opencode.access import StoreError
from app.sources.opencode.rows import Head, Usage
from app.sources.opencode.store import Store
from app.transcript.identity import Identity
from app.transcript.model import Assistant, Tool, TranscriptError, Turn, is_llm_call

MODELS_SHOWN = 9
_CURRENT = ("pending", "delivered", "dead", "dropped")
_NOT_QUEUED = "not queued"


@dataclass(slots=True)
class SessionRow:
    """A root session with its subagents."""

    id: str
    title: str
    directory: str
    updated_ms: int | None
    """None where OpenCode's store does not say."""
    turns: Mapping[str, int]
    """In the queue, by state."""
    calls: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    models: tuple[str, ...] = ()
    """Those that were called most, first."""

    @property
    def project(self) -> str:
        return project_name(self.directory)

    @property
    def state(self) -> str:
        """What is most worth knowing: dead, pending, dropped, delivered; or that nothing of it is in the queue."""
        return next((one for one in ("dead", "pending", "dropped", "delivered") if self.turns.get(one)), _NOT_QUEUED)


@dataclass(frozen=True, slots=True)
class SessionList:
    rows: tuple[SessionRow, ...]
    """The one that was worked at last first."""
    is_all: bool
    problem: str
    """Why OpenCode's store says nothing, so that these are the queue's; '' where it does."""


def list_sessions(db: sqlite3.Connection, store: Store, text: str, limit: int) -> SessionList:
    """Those with this text in their title, folder or id."""
    try:
        with store.kept_open():
            heads = store.heads()
            roots = [head for head in heads.values() if head.parent not in heads and _holds(head, text)]
            roots.sort(key=lambda head: (head.updated_ms, head.id), reverse=True)
            below = _below(heads.values())
            families = {name: root.id for root in roots[:limit] for name in _family(below, root.id)}
            used = store.usage(0, families)
    except StoreError as error:
        names = [name for name in listing.newest_sessions(db, limit + 1) if text in name]
        states = listing.turn_states(db, names[:limit])
        rows = [SessionRow(name, "", "", None, states.get(name, {})) for name in names[:limit]]
        return SessionList(tuple(rows), len(names) <= limit, str(error))
    states = listing.turn_states(db, [root.id for root in roots[:limit]])
    found = {
        root.id: SessionRow(root.id, root.title, root.directory, root.updated_ms, states.get(root.id, {}))
        for root in roots[:limit]
    }
    _add_usage(found, families, used)
    return SessionList(tuple(found.values()), len(roots) <= limit, "")


def _holds(head: Head, text: str) -> bool:
    return any(text.casefold() in told.casefold() for told in (head.title, head.directory, head.id))


def _below(heads: Iterable[Head]) -> dict[str, list[str]]:
    """By session those that it has called."""
    below: dict[str, list[str]] = {}
    for head in heads:
        if head.parent is not None:
            below.setdefault(head.parent, []).append(head.id)
    return below


def _family(below: Mapping[str, Sequence[str]], root: str) -> Iterator[str]:
    """The session and all below it."""
    waiting, seen = [root], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            yield name
            waiting += below.get(name, [])


def _add_usage(rows: Mapping[str, SessionRow], families: Mapping[str, str], used: Sequence[Usage]) -> None:
    calls: dict[str, dict[str, int]] = {}
    for one in used:
        row = rows[families[one.session]]
        row.calls += one.calls
        row.tokens += one.input_tokens + one.cache_read_tokens + one.cache_write_tokens + one.output_tokens
        row.cost_usd += one.cost_usd
        of_model = calls.setdefault(row.id, {})
        of_model[one.model] = of_model.get(one.model, 0) + one.calls
    for name, of_model in calls.items():
        ordered = sorted(of_model, key=lambda model: (-of_model[model], model))
        rows[name].models = tuple(model for model in ordered if model)[:MODELS_SHOWN]


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """One turn, or the session's own record."""

    name: str
    began_ms: int
    spans: tuple[Span, ...]
    jobs: tuple[tuple[ShownJob, tuple[Attempt, ...]], ...]
    """One for each destination, with its last attempts; none of what is delivered."""
    calls: int = 0
    tokens: int = 0
    cost_usd: float = 0.0

    @property
    def is_own_record(self) -> bool:
        return self.name == SESSION_RECORD


@dataclass(frozen=True, slots=True)
class OpenedSession:
    id: str
    root: str
    """The session that it is shown inside; itself where it is one."""
    title: str
    directory: str
    states: Mapping[str, int]
    """Turns in the queue, by state."""
    turns: tuple[ShownTurn, ...]
    """The latest first."""
    is_all: bool
    problem: str
    """Why times and titles are not known; '' where they are."""


@dataclass(slots=True)
class _Jobs:
    """What the ledger has of one turn."""

    jobs: list[ShownJob] = field(default_factory=list)
    records: dict[str, tuple[RecordState, ShownJob]] = field(default_factory=dict)
    """By request id, in order."""


def open_session(
    db: sqlite3.Connection, store: Store, session: str, prefix: str, now_ms: int, limit: int
) -> OpenedSession:
    """Its latest turns in the queue. `prefix`: of the paths of its records."""
    with store.kept_open():
        titles = Titles(store)
        found = listing.jobs(db, Filter(states=_CURRENT, sessions=(session,)), limit + 1)
        shown = shown_jobs(db, titles, found[:limit], now_ms)
        of_turn: dict[str, _Jobs] = {}
        for one in shown:
            jobs = of_turn.setdefault(one.job.turn, _Jobs())
            jobs.jobs.append(one)
            for record in listing.record_states(db, one.job):
                jobs.records.setdefault(record.request_id, (record, one))
        head = titles.of([session]).get(session)
        turns, problem = _turns_of(store, session, [name for name in of_turn if name != SESSION_RECORD])
    root, identity = _identity(db, found[0].destination_id, session) if found else (session, Identity(""))
    frame = Frame(session, "", prefix, identity.user_id, interrupted=True, encoding=identity.encoding)
    opened = [_shown_turn(db, name, jobs, turns.get(name), frame) for name, jobs in of_turn.items()]
    return OpenedSession(
        id=session,
        root=root,
        title=head.title if head else "",
        directory=head.directory if head else "",
        states=listing.turn_states(db, [session]).get(session, {}),
        turns=tuple(sorted(opened, key=lambda one: (not one.is_own_record, one.began_ms), reverse=True)),
        is_all=len(found) <= limit,
        problem=titles.problem or problem,
    )


def _identity(db: sqlite3.Connection, destination_id: int, session: str) -> tuple[str, Identity]:
    return versions.session_identity(db, destination_id, session) or (session, Identity(""))


def _turns_of(store: Store, session: str, names: Sequence[str]) -> tuple[dict[str, Turn], str]:
    """These turns without a word of their texts; and why there are none."""
    try:
        transcript = store.transcript(session, set(names))
    except (StoreError, TranscriptError) as error:
        return {}, str(error)
    if transcript is None:
        return {}, "OpenCode's store does not have this session any more"
    return {turn.id: withhold_turn(turn) for turn in transcript.turns}, ""


def _shown_turn(db: sqlite3.Connection, name: str, jobs: _Jobs, turn: Turn | None, frame: Frame) -> ShownTurn:
    tried = tuple((one, tuple(attempts(db, one.job.job_id))) for one in jobs.jobs)
    if turn is None:
        spans = tuple(_recorded(jobs))
        began_ms = min((span.start_ms for span in spans), default=jobs.jobs[0].job.enqueued_ms)
        return ShownTurn(name, began_ms, spans, tried)
    calls = [*_calls(turn)]
    spans = tuple(_encoded([*HELICONE.encode(turn, frame)], calls, jobs))
    counted = [call.tokens for call in calls if call.tokens is not None]
    return ShownTurn(
        name=name,
        began_ms=turn.messages[0].created_ms,
        spans=spans,
        jobs=tried,
        calls=len(calls),
        tokens=sum(one.input + one.output + one.reasoning + one.cache_read + one.cache_write for one in counted),
        cost_usd=sum(call.cost_usd for call in calls),
    )


def _calls(turn: Turn) -> Iterator[Assistant]:
    """The calls of a turn and of its subagents, in the order of their records."""
    for message in turn.messages:
        if isinstance(message, Assistant) and is_llm_call(message):
            yield message
        for part in message.parts:
            if isinstance(part, Tool) and part.child is not None:
                for inner in part.child.turns:
                    yield from _calls(inner)


def _encoded(records: Sequence[Record], calls: Sequence[Assistant], jobs: _Jobs) -> Iterator[Span]:
    """Rows of what OpenCode's store has, each with what became of its record."""
    depth_min = min((record.path.count("/") for record in records), default=0)
    of_call = iter(calls)
    for record in records:
        state, known = jobs.records.get(record.request_id), None
        if record.kind == "assistant":
            known = next(of_call, None)
        facts = [record.model] if record.kind == "assistant" else []
        if known is not None and known.tokens is not None:
            read = known.tokens.input + known.tokens.cache_read + known.tokens.cache_write
            facts.append(f"{read:,} + {known.tokens.output + known.tokens.reasoning:,} tokens")
        yield Span(
            label=_label(state[0].path if state and state[0].path else record.path),
            depth=record.path.count("/") - depth_min,
            kind=record.kind,
            start_ms=record.start_ms,
            end_ms=record.end_ms,
            facts=tuple(facts),
            state=_state(state),
            is_bad=record.is_failed,
        )


def _recorded(jobs: _Jobs) -> Iterator[Span]:
    """Rows of what the ledger alone knows: no ends."""
    depth_min = min((one.path.count("/") for one, _ in jobs.records.values()), default=0)
    for record, job in jobs.records.values():
        kind = HELICONE.kind_of(record.model)
        yield Span(
            label=_label(record.path) or record.request_id,
            depth=record.path.count("/") - depth_min,
            kind=kind,
            start_ms=job.job.enqueued_ms if record.start_ms is None else record.start_ms,
            end_ms=None,
            facts=(record.model,) if kind == "assistant" else (),
            state=_state((record, job)),
        )


def _label(path: str) -> str:
    return path.rpartition("/")[2]


def _state(found: tuple[RecordState, ShownJob] | None) -> str:
    """Of one record: taken by the destination, or how its job stands."""
    if found is None:
        return ""
    record, job = found
    if record.acknowledged_ms is not None or job.job.state == "delivered":
        return "taken"
    return {"pending": "not yet"}.get(job.job.state, job.job.state)

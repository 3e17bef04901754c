"""Recall: overwrites what is at Helicone by new versions of turns, under the same ids, that hold less.

    turns ─ OpenCode's store ▶ today's rules, and one pattern more ─▶ redacted records ┐
          ─ identities ▶ nothing but what Helicone knows each by  ─▶ blank records ────┴▶ versions.insert ▶ the worker

Nothing is posted here: the jobs are delivered as all others are, with their retries, also after a crash.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from app.capture.config import why_nothing
from app.capture.enqueue import body_of
from app.capture.export import Export
from app.capture.folders import Folders
from app.ledger.decision import RECALL, WANTED
from app.ledger.destinations import by_id, destinations
from app.ledger.history import exported, exported_sessions
from app.ledger.versions import insert, session_identity
from app.privacy.policy import Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.privacy.user_patterns import compile_pattern
from app.recall.audit import GONE, audit, delivered_turns, hits
from app.recall.blank import blanked, unnamed
from app.recall.delivered_policy import DeliveredPolicy, Encodings, mode_of
from app.recall.expected import ExpectedContent, expected_content
from app.recall.rewrite import Delivered, Problem, Refusal, Rewrite, rewrite, sent
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store
from app.transcript.identity import Identity
from app.transcript.model import Transcript, TranscriptError, key


@dataclass(frozen=True, slots=True)
class Plan:
    """One root session."""

    session: str
    rewrites: tuple[Rewrite, ...]
    problems: tuple[Problem, ...]

    @property
    def records(self) -> int:
        return sum(len(one.bodies) for one in self.rewrites)


@dataclass(frozen=True, slots=True)
class Queued:
    """Result of queueing a plan."""

    expected: tuple[ExpectedContent, ...]
    """What is to be seen at Helicone."""
    in_flight: tuple[str, ...]
    """Turns of which a worker had an older version in hand meanwhile: they must be planned and queued again."""


class Recall:
    """How turns are made anew: `blank`, or redacted by today's rules and by `pattern` (RE2) besides.

    Turns of which OpenCode wrote nothing since `since_ms` are left as they are.
    Raises PatternError for a pattern that does not compile.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        destination_id: int,
        store: Store,
        folders: Folders,
        *,
        pattern: str | None = None,
        is_blank: bool = False,
        since_ms: int = 0,
    ) -> None:
        self._db = db
        self._destination_id = destination_id
        self._kind = by_id(db, destination_id).kind
        self._store = store
        self._folders = folders
        self._pattern = pattern
        self._is_blank = is_blank
        self._since_ms = since_ms
        self._search = Redaction.compile([pattern] if pattern is not None else [], secrets=False)

    def named(self, sessions: Collection[str]) -> tuple[list[str], list[Problem]]:
        """Sessions of these names that were delivered here, or all that were; and what is wrong with the names."""
        known = exported_sessions(self._db, self._destination_id)
        problems = []
        for name in sessions:
            if name not in known:
                root = session_identity(self._db, self._destination_id, name)
                refusal = Refusal.IS_SUBAGENT if root else Refusal.NOT_DELIVERED
                problems.append(Problem(refusal, name, detail=root[0] if root else ""))
        return [name for name in known if not sessions or name in sessions], problems

    def audited(self, session: str) -> frozenset[str] | Problem:
        """The turns that today's rules would redact differently. Raises StoreError."""
        found = audit(self._db, self._destination_id, self._store, self._folders, session, self._since_ms)
        if found is not None and found.problem:
            return Problem(Refusal.NOT_AUDITED, session, detail=found.problem)
        return frozenset(record.turn for record in found.records) if found is not None else frozenset()

    def matching(self, session: str) -> frozenset[str] | Problem:
        """The turns sent in full of which a record matches the pattern, without any redaction. Raises StoreError."""
        turns = delivered_turns(
            self._db, self._destination_id, session, self._since_ms, or_waiting=True, with_identities=False
        )
        if not turns:
            return frozenset()
        try:
            transcript = self._store.transcript(session)
        except TranscriptError as error:
            return Problem(Refusal.NOT_SEARCHED, session, detail=str(error))
        if transcript is None:
            return Problem(Refusal.NOT_SEARCHED, session, detail=GONE)
        found = Encodings(transcript, Identity(""), self._kind).bare(None)
        return frozenset(
            turn
            for turn, export in found.items()
            if turn in turns
            and mode_of(turns[turn]) == "full"
            and any(hits(record, self._search, self._kind) for record in export.encode())
        )

    def plan(self, session: str, turns: Collection[str] | None) -> Plan:
        """What becomes of these turns of a root session, or of all."""
        of = self._delivered(session, turns)
        found = list(self._blanked(of) if self._is_blank else self._redacted(of))
        return Plan(
            session,
            tuple(one for one in found if isinstance(one, Rewrite)),
            tuple(one for one in found if isinstance(one, Problem)),
        )

    def queue(self, plan: Plan, now_ms: int, wake: Callable[[str], None]) -> Queued:
        """Put the plan into the ledger, a turn at a time."""
        expected: list[ExpectedContent] = []
        in_flight: list[str] = []
        for one in plan.rewrites:
            decision = insert(self._db, self._destination_id, one.version, one.bodies, now_ms=now_ms, reopen=RECALL)
            if decision in WANTED and self._covers(plan.session, one):
                expected += (expected_content(plan.session, body, self._kind) for body in one.bodies)
            else:
                in_flight.append(one.version.turn)
        if len(in_flight) < len(plan.rewrites):
            wake(plan.rewrites[0].version.key)
        return Queued(tuple(expected), tuple(in_flight))

    def undelivered(self, session: str, turns: Collection[str]) -> Iterator[Problem]:
        """Turns, of these, that are not at Helicone as they were queued."""
        for one in exported(self._db, self._destination_id, session):
            if one.turn in turns and one.state not in {"delivered", "superseded"}:
                told = one.drop_reason or one.error
                yield Problem(Refusal.NOT_THERE, session, one.turn, f"{one.state}{f' ({told})' if told else ''}")

    def elsewhere(self, sessions: Collection[str]) -> Iterator[Problem]:
        """Sessions that were delivered under another key or to another endpoint, too: these rows stay as they are."""
        for other in destinations(self._db):
            for name in exported_sessions(self._db, other.id) if other.id != self._destination_id else ():
                if name in sessions and any(one.was_attempted for one in exported(self._db, other.id, name)):
                    where = other.endpoint or "another endpoint"
                    told = f"{where} under another key"
                    if other.kind != self._kind or other.name:
                        told = f"{where} (recall --destination {other.name or other.kind})"
                    yield Problem(Refusal.ELSEWHERE, name, detail=told)

    def _covers(self, session: str, one: Rewrite) -> bool:
        """Whether nothing was sent of the turn, before it was queued, that the plan did not know of."""
        versions = self._delivered(session, [one.version.turn]).turns.get(one.version.turn, ())
        older = [version for version in versions if version.key != one.version.key]
        return {each.request_id for each in sent(older)} <= {body.request_id for body in one.bodies}

    def _delivered(self, session: str, turns: Collection[str] | None) -> Delivered:
        found = delivered_turns(self._db, self._destination_id, session, self._since_ms, or_waiting=True)
        known = session_identity(self._db, self._destination_id, session)
        chosen = {turn: versions for turn, versions in found.items() if turns is None or turn in turns}
        return Delivered(session, known[1] if known else Identity(""), chosen, self._kind)

    def _redacted(self, of: Delivered) -> Iterator[Rewrite | Problem]:
        try:
            transcript = self._store.transcript(of.session)
        except (StoreError, TranscriptError) as error:
            yield Problem(Refusal.UNREADABLE, of.session, detail=str(error))
            return
        if transcript is None:
            yield Problem(Refusal.NO_TEXT, of.session)
            return
        settings, today = self._folders.find(transcript.session.directory)
        if today is None or today.policy.mode == "off":
            yield Problem(Refusal.WITHHELD, of.session, detail=why_nothing(settings))
            return
        capture = self._with_pattern(today)
        precedent = DeliveredPolicy(Encodings(transcript, of.identity, of.kind), capture)
        # The settings do not know what the turn is redacted by.
        yield from redacted(of, precedent, is_sealed=capture is not today)

    def _with_pattern(self, today: Capture) -> Capture:
        if self._pattern is None or self._pattern in today.policy.patterns:
            return today
        patterns = (*today.policy.patterns, self._pattern)
        compiled = (*today.redaction.patterns, compile_pattern(len(patterns), self._pattern))
        return replace(
            today,
            policy=replace(today.policy, patterns=patterns),
            redaction=replace(today.redaction, patterns=compiled),
        )

    def _blanked(self, of: Delivered) -> Iterator[Rewrite | Problem]:
        without_ids = unnamed(of)
        return blanked(of, self._as_sent(of, without_ids) if without_ids else {})

    def _as_sent(self, of: Delivered, turns: Collection[str]) -> Mapping[str, Export]:
        """The turns under what they were sent under: their names and paths are what Helicone knows them by."""
        try:
            transcript = self._store.transcript(of.session)
        except (StoreError, TranscriptError):
            return {}
        if transcript is None:
            return {}
        encodings = Encodings(transcript, of.identity, of.kind)
        precedent = DeliveredPolicy(encodings, self._any_capture(transcript, of.identity))
        found = {turn: precedent.last(turn, of.turns[turn]) for turn in turns}
        return {turn: export for turn, export in found.items() if export is not None}

    def _any_capture(self, transcript: Transcript, identity: Identity) -> Capture:
        """Of a folder that is switched off, too: nothing that it would leave in is posted."""
        settings, today = self._folders.find(transcript.session.directory)
        policy = Policy("metadata_only", (), redact_secrets=True, prefix=settings.session_path_prefix)
        return today or Capture(policy, Redaction.compile([]), identity.user_id, self._kind)


def redacted(of: Delivered, precedent: DeliveredPolicy, *, is_sealed: bool) -> Iterator[Rewrite | Problem]:
    """Each turn without what today's rules take out of it, and without what was taken out of it before."""
    for turn, versions in of.turns.items():
        policy, export = precedent.capture(versions).policy, precedent.export(turn, versions)
        if export is None:
            yield Problem(Refusal.NO_TEXT, of.session, turn)
            continue
        name = key(export.digest, policy.digest(of.identity.user_id))
        # What an earlier recall took out is not known here, and would come back.
        is_shut = versions[-1].is_sealed and versions[-1].key != name
        problem = Problem(Refusal.SEALED, of.session, turn) if is_shut else precedent.objection(turn, versions)
        if problem is not None:
            yield problem
        else:
            yield from rewrite(
                of,
                turn,
                map(body_of, export.encode()),
                key=name,
                policy=policy,
                last_event_ms=export.last_event_ms,
                is_sealed=is_sealed,
            )

"""What is at Helicone is overwritten: new versions of turns, under the same ids, that hold less.

    turns ─ OpenCode's store ▶ today's rules, and one pattern more ─▶ redacted records ┐
          ─ footprints ▶ nothing but what Helicone knows each by  ─▶ blank records ────┴▶ versions.insert ▶ the worker

Nothing is posted here: the jobs are delivered as all others are, with their retries, also after a crash.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.capture.config import why_nothing
from app.capture.enqueue import body_of
from app.capture.export import Export
from app.capture.folders import Folders
from app.exporters.helicone.records import Record, blank
from app.ledger import history
from app.ledger.history import Exported
from app.ledger.job import Body, Standing, Version
from app.ledger.versions import frozen, insert
from app.privacy.policy import Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.privacy.user_patterns import compile_pattern
from app.recall.audit import GONE, bare, encoded, hits, sent_turns
from app.recall.blank import blank_body, blank_key, is_unprinted, row, sent
from app.recall.delivered_policy import Precedent, mode_of
from app.recall.expected import Likeness, likeness
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store
from app.transcript.identity import Identity
from app.transcript.model import Transcript, TranscriptError, key

REOPENED = ("delivered", "dead", "pending", "sealed", "body_not_stored", "age", "size", "purged", "deleted", "off")
"""Whatever became of a turn: what of it is at Helicone is overwritten."""
BY_BLANK = "recall it with --blank"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One turn's new version."""

    version: Version
    bodies: tuple[Body, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """One root session."""

    session: str
    rewrites: tuple[Rewrite, ...]
    problems: tuple[str, ...]
    """What cannot be overwritten, and what to do about it."""

    @property
    def records(self) -> int:
        return sum(len(one.bodies) for one in self.rewrites)


@dataclass(frozen=True, slots=True)
class Queued:
    """Of a plan."""

    expected: tuple[Likeness, ...]
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
        self._store = store
        self._folders = folders
        self._pattern = pattern
        self._is_blank = is_blank
        self._since_ms = since_ms
        self._search = Redaction.compile([pattern] if pattern is not None else [], secrets=False)

    def matching(self, session: str) -> frozenset[str] | None:
        """The turns sent in full of which a record matches the pattern, without any redaction; None without text.

        Raises StoreError, TranscriptError.
        """
        sent = self._turns(session, None)
        if not sent:
            return frozenset()
        transcript = self._store.transcript(session)
        if transcript is None:
            return None
        found = encoded(transcript, bare(None), Identity(""))
        return frozenset(
            turn
            for turn, export in found.items()
            if turn in sent
            and mode_of(sent[turn]) == "full"
            and any(hits(record, self._search) for record in export.encode())
        )

    def plan(self, session: str, turns: Collection[str] | None) -> Plan:
        """What becomes of these turns of a root session, or of all."""
        chosen = self._turns(session, turns)
        if self._is_blank:
            return self._blank(session, chosen)
        try:
            transcript = self._store.transcript(session)
        except (StoreError, TranscriptError) as error:
            return Plan(session, (), (f"{error}: {BY_BLANK}",))
        if transcript is None:
            return Plan(session, (), (f"its text is {GONE}: {BY_BLANK}",))
        settings, capture = self._folders.find(transcript.session.directory)
        if capture is None or capture.policy.mode == "off":
            return Plan(session, (), (f"nothing is posted: {why_nothing(settings)}",))
        return self._redacted(session, transcript, self._with_pattern(capture), chosen)

    def queue(self, plan: Plan, now_ms: int, ring: Callable[[str], None]) -> Queued:
        """Put the plan into the ledger, a turn at a time."""
        expected: list[Likeness] = []
        in_flight: list[str] = []
        for one in plan.rewrites:
            standing = insert(self._db, self._destination_id, one.version, one.bodies, now_ms=now_ms, reopen=REOPENED)
            if standing in {Standing.NEW, Standing.REOPENED} and self._covers(plan.session, one):
                expected += (likeness(plan.session, body) for body in one.bodies)
            else:
                in_flight.append(one.version.turn)
        if len(in_flight) < len(plan.rewrites):
            ring(plan.rewrites[0].version.key)
        return Queued(tuple(expected), tuple(in_flight))

    def _covers(self, session: str, rewrite: Rewrite) -> bool:
        """Whether nothing was sent of the turn, before it was queued, that the plan did not know of."""
        versions = self._turns(session, [rewrite.version.turn]).get(rewrite.version.turn, [])
        older = [one for one in versions if one.key != rewrite.version.key]
        return {one.request_id for one in sent(older)} <= {body.request_id for body in rewrite.bodies}

    def _turns(self, session: str, turns: Collection[str] | None) -> dict[str, list[Exported]]:
        """All versions of what was sent of the session, or may still be."""
        sent = sent_turns(self._db, self._destination_id, session, self._since_ms)
        for version in history.exported(self._db, self._destination_id, session):
            if version.turn not in sent and version.state in {"pending", "dead"} and version.facts_ms >= self._since_ms:
                sent[version.turn] = [version]
        return {turn: versions for turn, versions in sent.items() if turns is None or turn in turns}

    def _with_pattern(self, capture: Capture) -> Capture:
        if self._pattern is None or self._pattern in capture.policy.patterns:
            return capture
        patterns = (*capture.policy.patterns, self._pattern)
        compiled = (*capture.redaction.patterns, compile_pattern(len(patterns), self._pattern))
        return replace(
            capture,
            policy=replace(capture.policy, patterns=patterns),
            redaction=replace(capture.redaction, patterns=compiled),
        )

    def _is_sealing(self, capture: Capture, directory: str | None) -> bool:
        """Whether the settings do not know what the turn is redacted by."""
        today = self._folders.find(directory)[1]
        return today is None or capture.policy.patterns != today.policy.patterns

    def _redacted(
        self, session: str, transcript: Transcript, capture: Capture, turns: Mapping[str, Sequence[Exported]]
    ) -> Plan:
        identity = self._identity(session)
        user_id = identity.user_id
        is_sealed = self._is_sealing(capture, transcript.session.directory)
        precedent = Precedent(transcript, capture, identity)
        rewrites: list[Rewrite] = []
        problems: list[str] = []
        for turn, versions in turns.items():
            strict = precedent.capture(versions)
            export = precedent.export(turn, strict)
            if export is None:
                problems.append(f"{turn}: its text is {GONE}: {BY_BLANK}")
                continue
            name = key(export.digest, strict.policy.digest(user_id))
            if versions[-1].is_sealed and versions[-1].key != name:
                # What that recall took out is not known here, and would come back.
                problems.append(f"{turn}: overwritten before by --match or --blank: {BY_BLANK}")
                continue
            objection = precedent.objection(turn, versions)
            if objection:
                problems.append(f"{turn}: {objection}: or {BY_BLANK}")
                continue
            bodies, missed = self._bodies(session, user_id, export.encode(), versions)
            problems += (f"{turn}: {one}" for one in missed)
            version = self._version(session, turn, name, versions, strict.policy, user_id, export)
            rewrites.append(Rewrite(replace(version, is_sealed=is_sealed), bodies))
        return Plan(session, tuple(rewrites), tuple(problems))

    def _blank(self, session: str, turns: Mapping[str, Sequence[Exported]]) -> Plan:
        identity = self._identity(session)
        user_id = identity.user_id
        rewrites: list[Rewrite] = []
        problems: list[str] = []
        policy = Policy("metadata_only", (), redact_secrets=True, prefix="")
        unprinted = {turn for turn, versions in turns.items() if is_unprinted(versions, blank_key(session, turn))}
        found = self._from_store(session, identity, {turn: turns[turn] for turn in unprinted}) if unprinted else {}
        for turn, versions in turns.items():
            records: tuple[Record, ...] = ()
            if turn in unprinted:
                if turn not in found:
                    problems.append(f"{turn}: sent before its ids were kept, and {GONE}: it cannot be overwritten")
                    continue
                records = tuple(blank(record, session) for record in found[turn].encode())
            bodies, missed = self._bodies(session, user_id, records, versions)
            problems += (f"{turn}: {one}" for one in missed)
            name = blank_key(session, turn)
            version = self._version(session, turn, name, versions, policy, user_id, None)
            rewrites.append(Rewrite(replace(version, is_sealed=True), bodies))
        return Plan(session, tuple(rewrites), tuple(problems))

    def _from_store(
        self, session: str, identity: Identity, turns: Mapping[str, Sequence[Exported]]
    ) -> Mapping[str, Export]:
        """The turns under what they were sent under: their names and paths are what Helicone knows them by."""
        try:
            transcript = self._store.transcript(session)
        except (StoreError, TranscriptError):
            return {}
        if transcript is None:
            return {}
        settings, capture = self._folders.find(transcript.session.directory)
        if capture is None:
            policy = Policy("metadata_only", (), redact_secrets=True, prefix=settings.session_path_prefix)
            capture = Capture(policy, Redaction.compile([]), identity.user_id)
        precedent = Precedent(transcript, capture, identity)
        found = {turn: precedent.export(turn, precedent.last(versions)) for turn, versions in turns.items()}
        return {turn: export for turn, export in found.items() if export is not None}

    def _bodies(
        self, session: str, user_id: str, records: Iterable[Record], versions: Sequence[Exported]
    ) -> tuple[tuple[Body, ...], list[str]]:
        """The records, and a blank one for each that was sent and is not among them; what cannot be overwritten."""
        made = {body.request_id: body for body in map(body_of, records)}
        missed: list[str] = []
        for one in sent(versions):
            other = made.get(one.request_id)
            if other is None:
                made[one.request_id] = blank_body(one, session, user_id)
            elif other.frozen is not None and row(other.frozen) != row(one.frozen):
                missed.append(f"an older row under the id {one.request_id}, of another start or model, stays")
        return tuple(made.values()), missed

    def _identity(self, session: str) -> Identity:
        known = frozen(self._db, self._destination_id, session)
        return known[1] if known else Identity("")

    def _version(
        self,
        session: str,
        turn: str,
        name: str,
        versions: Sequence[Exported],
        policy: Policy,
        user_id: str,
        export: Export | None,
    ) -> Version:
        told_ms = max(one.facts_ms for one in versions)
        return Version(
            session=session,
            root=session,
            turn=turn,
            key=name,
            facts_ms=told_ms if export is None else max(told_ms, export.facts_ms),
            user_id=user_id,
            folder="",  # the session has one already
            policy=policy.facts(user_id),
            is_recall=True,
        )

"""Delivered policy: makes turns again as they were made when they were sent, and compares the two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.capture.export import Export, split
from app.exporters.encoder import Record
from app.ledger.history import Exported
from app.ledger.record_identity import DIGEST_BYTES, RecordIdentity
from app.privacy.policy import Mode, Policy, is_as_strict, retold, strictest
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.recall.rewrite import Problem, Refusal
from app.transcript.identity import Identity
from app.transcript.model import Transcript

_NOTHING = Redaction((), secrets=False, known=None)
"""Takes nothing out."""


class Encodings:
    """One session's turns, encoded under each capture that is asked for."""

    def __init__(self, transcript: Transcript, identity: Identity, kind: str) -> None:
        self._kind = kind
        self.session = transcript.session.id
        self._transcript = transcript
        self._identity = identity
        self._made: dict[str, Mapping[str, Export]] = {}

    def under(self, capture: Capture) -> Mapping[str, Export]:
        """Exports by turn; nothing is encoded before it is asked for."""
        name = f"{capture.policy.facts('')} {capture.redaction.secrets}"
        if name not in self._made:
            self._made[name] = self._encode(capture)
        return self._made[name]

    def bare(self, today: Capture | None) -> Mapping[str, Export]:
        """Exports with all texts as they are: to look into, never to be kept."""
        policy = Policy("full", (), redact_secrets=False, prefix=today.policy.prefix if today else "")
        return self._encode(Capture(policy, _NOTHING, "", self._kind))

    def _encode(self, capture: Capture) -> Mapping[str, Export]:
        ready, _ = split(self._transcript, capture, self._identity, abandoned=True)
        return {one.turn: one for one in ready}


class DeliveredPolicy:
    """One session's turns under what they were made under, compared with a capture of today."""

    def __init__(self, encodings: Encodings, today: Capture) -> None:
        self._encodings = encodings
        self._today = today

    def capture(self, versions: Sequence[Exported]) -> Capture:
        """Today's, with no looser mode than the turn was made under."""
        mode = strictest(self._today.policy.mode, mode_of(versions))
        return replace(self._today, policy=replace(self._today.policy, mode=mode))

    def export(self, turn: str, versions: Sequence[Exported]) -> Export | None:
        """Made under that; None for a turn that OpenCode does not have any more."""
        return self._encodings.under(self.capture(versions)).get(turn)

    def last(self, turn: str, versions: Sequence[Exported]) -> Export | None:
        """Made under what it was sent under last."""
        policy = next(one.policy for one in reversed(versions) if one.was_attempted)
        return self._encodings.under(as_made(self._today, policy)).get(turn)

    def objection(self, turn: str, versions: Sequence[Exported]) -> Problem | None:
        """Why the turn, made today, could hold what it was delivered without; None where it cannot."""
        now = self.capture(versions).policy.facts("")
        for one in _binding(versions):
            if not is_as_strict(now, one.policy):
                return Problem(Refusal.LOOSER, self._encodings.session, turn, _looser(now, one.policy))
        if not self._is_as_made_then(turn, versions):
            return Problem(Refusal.UNEQUAL, self._encodings.session, turn)
        return None

    def _is_as_made_then(self, turn: str, versions: Sequence[Exported]) -> bool:
        """Whether each record, made under the policy of then, is what was made then; also where no digests are kept."""
        last = identities(_binding(versions))
        for policy in {policy for _, policy in last.values()}:
            then = self._encodings.under(as_made(self._today, policy)).get(turn)
            for record in then.encode() if then is not None else ():
                one = last.get(record.request_id)
                if one is None or (one[1] == policy and one[0].digest != digest_of(record)):
                    return False
        return True


def mode_of(versions: Sequence[Exported]) -> Mode:
    """The strictest that anything was made under that is at Helicone or on its way."""
    mode: Mode = "full"
    for one in _binding(versions):
        mode = strictest(mode, json.loads(one.policy)["mode"] if one.policy else "full")
    return mode


def identities(versions: Sequence[Exported]) -> dict[str, tuple[RecordIdentity, str]]:
    """Record identities by request id: what was last made of the record, and under which policy."""
    return {str(one.request_id): (one, made.policy) for made in versions for one in made.identities}


def digest_of(record: Record) -> bytes:
    return hashlib.sha256(record.body).digest()[:DIGEST_BYTES]


def as_made(today: Capture, policy: str) -> Capture:
    """How it was captured under the policy (its facts), with those of its patterns that are in force today."""
    made = retold(today.policy, policy)
    kept = zip(today.policy.patterns, today.redaction.patterns, strict=True)
    compiled = tuple(one for pattern, one in kept if pattern in made.patterns)
    redaction = replace(today.redaction, patterns=compiled, secrets=made.redact_secrets)
    # What is equal is the same: it knows what it has seen.
    return replace(today, policy=made, redaction=today.redaction if redaction == today.redaction else redaction)


def _binding(versions: Sequence[Exported]) -> list[Exported]:
    return [one for one in versions if one.was_attempted or one.state in {"pending", "dead"}]


def _looser(now: str, made_under: str) -> str:
    strict = not made_under or json.loads(made_under)["redact_secrets"]
    return "redactSecrets" if strict and not json.loads(now)["redact_secrets"] else "redactPatterns"

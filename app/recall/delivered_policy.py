"""What a turn was delivered under: a recall takes out of it, and puts nothing back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.capture.export import Export
from app.ledger.history import Exported
from app.privacy.policy import Mode, is_as_strict, strictest
from app.privacy.terms import Capture
from app.recall.audit import as_made, digest_of, encoded
from app.transcript.identity import Identity
from app.transcript.model import Transcript


def mode_of(versions: Sequence[Exported]) -> Mode:
    """The strictest that anything was made under that is at Helicone or on its way."""
    mode: Mode = "full"
    for one in _binding(versions):
        mode = strictest(mode, json.loads(one.policy)["mode"] if one.policy else "full")
    return mode


class Precedent:
    """One session's turns under what they were made under, compared with a capture of today."""

    def __init__(self, transcript: Transcript, today: Capture, identity: Identity) -> None:
        self._transcript = transcript
        self._today = today
        self._identity = identity
        self._exports: dict[str, Mapping[str, Export]] = {}

    def capture(self, versions: Sequence[Exported]) -> Capture:
        """Today's, with no looser mode than the turn was made under."""
        mode = strictest(self._today.policy.mode, mode_of(versions))
        return replace(self._today, policy=replace(self._today.policy, mode=mode))

    def last(self, versions: Sequence[Exported]) -> Capture:
        """How the turn was captured when it was sent last."""
        return as_made(self._today, next(one.policy for one in reversed(versions) if one.was_attempted))

    def export(self, turn: str, capture: Capture) -> Export | None:
        name = f"{capture.policy.facts('')} {capture.redaction.secrets}"
        if name not in self._exports:
            self._exports[name] = encoded(self._transcript, capture, self._identity)
        return self._exports[name].get(turn)

    def objection(self, turn: str, versions: Sequence[Exported]) -> str:
        """Why the turn, made today, could hold what it was delivered without; '' where it cannot."""
        now = self.capture(versions).policy.facts("")
        for one in _binding(versions):
            if not is_as_strict(now, one.policy):
                return f"it was delivered under a stricter {_looser(now, one.policy)} than today's"
        if not self._is_as_printed(turn, versions):
            return (
                "it was redacted by secrets that are not known here (run this where OpenCode runs, with its"
                " environment), or sent by another version, or changed in OpenCode since"
            )
        return ""

    def _is_as_printed(self, turn: str, versions: Sequence[Exported]) -> bool:
        """Whether each record, made under the policy of then, is what was made then; also where no digests are kept."""
        last = {str(one.request_id): (one, made.policy) for made in _binding(versions) for one in made.prints}
        for policy in {policy for _, policy in last.values()}:
            then = self.export(turn, as_made(self._today, policy))
            for record in then.encode() if then is not None else ():
                one = last.get(record.request_id)
                if one is None or (one[1] == policy and one[0].digest != digest_of(record)):
                    return False
        return True


def _binding(versions: Sequence[Exported]) -> list[Exported]:
    return [one for one in versions if one.was_attempted or one.state in {"pending", "dead"}]


def _looser(now: str, made_under: str) -> str:
    strict = not made_under or json.loads(made_under)["redact_secrets"]
    return "redactSecrets" if strict and not json.loads(now)["redact_secrets"] else "redactPatterns"

"""The policy: what decides which bytes may leave."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

Mode = Literal["full", "metadata_only", "off"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Versions of the program and of its rule set are no part of it: an upgrade sends nothing again by itself."""

    mode: Mode
    patterns: tuple[str, ...]
    redact_secrets: bool
    prefix: str

    def facts(self, user_id: str) -> str:
        """The policy as JSON to be kept with a job, equal for equal policies. `user_id` is '' for none.

        Patterns are short hashes: somebody may have written the very secret down as a pattern.
        """
        marks = sorted(
            hashlib.sha256(pattern.encode("utf-8", "surrogatepass")).hexdigest()[:12] for pattern in self.patterns
        )
        return json.dumps(self._facts(user_id, marks), sort_keys=True)

    def digest(self, user_id: str) -> str:
        """SHA-256 (hex) of the policy; one half of a job's key."""
        return hashlib.sha256(
            json.dumps(self._facts(user_id, sorted(self.patterns)), sort_keys=True).encode()
        ).hexdigest()

    def _facts(self, user_id: str, patterns: list[str]) -> dict[str, object]:
        return {
            "mode": self.mode,
            # Under metadata_only no text leaves, so the patterns decide nothing.
            "patterns": patterns if self.mode == "full" else [],
            "redact_secrets": self.redact_secrets if self.mode == "full" else True,
            "prefix": self.prefix,
            "user_id": user_id,
        }

"""Terms of a capture, as a value: the policy, compiled rules and user under which a folder's sessions leave."""

from __future__ import annotations

from dataclasses import dataclass

from app.privacy.policy import Policy
from app.privacy.redact import Redaction


@dataclass(frozen=True, slots=True)
class Capture:
    """How sessions of one project folder are captured."""

    policy: Policy
    redaction: Redaction
    user_id: str
    """'' for none. A session keeps the one of its first record."""
    kind: str = "helicone"
    """Of the destination: what a session becomes there."""

"""Identity: what all records of a root session have in common for ever, fixed when its first turn is captured.

Helicone takes a record for another one when its model or its user id changes, and one session for two when the name
does. So these three are kept with the session, and whoever makes a record of it again makes it with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Encoding = Literal[1, 2]
"""How records are written. 1: prompts and sessions as Helicone's `data`, which its pages cannot show; for sessions that
the ledger knew before there was another. 2: both as chats."""
NEWEST: Encoding = 2


@dataclass(frozen=True, slots=True)
class Identity:
    user_id: str
    """'' for none."""
    encoding: Encoding = NEWEST
    session_name: str | None = None
    """As it is sent, and redacted. None where it was not fixed: it follows from the session's directory each time."""

"""What all records of a root session have in common for ever, fixed when its first turn is captured.

Helicone takes a record for another one when its model or its user id changes, and one session for two when the name
does. So these three are kept with the session, and whoever makes a record of it again makes it with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Encoding = Literal[1, 2]
"""How records are written. 1: as in version 0.1.0, for sessions that the ledger knew before there was another."""
NEWEST: Encoding = 1


@dataclass(frozen=True, slots=True)
class Identity:
    user_id: str
    """'' for none."""
    encoding: Encoding = NEWEST
    session_name: str | None = None
    """None where it was not fixed: it follows from the session's directory each time."""

"""Centre: what the company's intake has said of this machine's logs, for a person. Nobody is asked here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.settings.destinations import towards
from app.settings.model import HELICONE, Settings

if TYPE_CHECKING:
    from app.settings.intake import DeadRecord


@dataclass(frozen=True, slots=True)
class Centre:
    """As of the last answer that a worker has kept."""

    intake: str
    """Its address."""
    heard_ms: int | None
    """When it answered; None: it never has. Then the numbers mean nothing."""
    export_mode: str
    """'' where nothing is known of what it takes, or where that cannot be used here."""
    patterns: int
    """Redaction patterns of its own."""
    waiting: int
    """Logs that it has, and has not delivered yet."""
    dead: int
    """Those that it gave up."""
    dead_records: tuple[DeadRecord, ...]
    """The latest of them."""
    asked_ms: int | None
    failure: str
    """Why it has not answered the last question; '' where it has."""

    @property
    def is_refused(self) -> bool:
        """Nothing will come of asking again: somebody has to see to the token or the address."""
        return self.failure.startswith(("401", "404"))


def centre(settings: Settings) -> Centre | None:
    """None where Helicone's key is no token."""
    settings = towards(settings.common or settings, HELICONE)
    if settings.heard is None:
        return None
    from app.settings.heard import base, kept, place  # noqa: PLC0415 - hardly anybody has an intake

    known = kept(place(settings))
    said = known.answer
    is_usable = said is not None and not settings.silence
    return Centre(
        intake=base(settings.endpoint),
        heard_ms=known.heard_ms,
        export_mode=said.export_mode if said is not None and is_usable else "",
        patterns=len(said.redact_patterns) if said is not None and is_usable else 0,
        waiting=said.waiting if said is not None else 0,
        dead=said.dead if said is not None else 0,
        dead_records=said.dead_records if said is not None else (),
        asked_ms=known.asked_ms or None,
        failure=known.failure,
    )

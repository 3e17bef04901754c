"""Access: with what the client of the settings' destination is made."""

from __future__ import annotations

from app.exporters.access import Access
from app.settings.model import HELICONE, Settings


def access(settings: Settings) -> Access:
    key = settings.credential if settings.kind == HELICONE else ""
    return Access(settings.kind, key, settings.headers, settings.preset, settings.project)

"""What others need of the settings: to be recorded for later processes, and to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from app.settings.model import DEFAULT, Settings
from app.settings.names import BY_OPTION, CAPTURE, DELIVERY, NAMES

T = TypeVar("T")


def delivery_options(settings: Settings) -> dict[str, object]:
    """By plugin name, the values in force of what decides about delivery."""
    return {NAMES[name].option: getattr(settings, name) for name in DELIVERY}


def capture_options(settings: Settings) -> dict[str, object]:
    """By plugin name, as JSON, the values in force of what decides which bytes may leave."""
    values = {NAMES[name].option: getattr(settings, name) for name in CAPTURE}
    return values | {"redactPatterns": list(settings.redact_patterns)}


def to_record(settings: Settings, options: Mapping[str, T]) -> dict[str, T]:
    """Those of `options` (of `delivery_options` or `capture_options`) that a later process could not find by itself.

    Defaults, the user's config file and `.env` are left out: recorded, an old `full` would overrule the
    `metadata_only` that the user has written into the config file since.
    """
    seen_later = ("default", "config file", ".env")
    return {
        option: value
        for option, value in options.items()
        if settings.origins.get(BY_OPTION[option], DEFAULT).source not in seen_later
    }


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of `config show`. `value` is JSON; of the API key, `set` or `not set`."""

    name: str
    value: object
    origin: str
    unit: str


def shown(settings: Settings) -> list[Shown]:
    values = {name: getattr(settings, name) for name in NAMES} | {
        "api_key": "set" if settings.api_key else "not set",
        "redact_patterns": list(settings.redact_patterns),
        "spool_directory": str(settings.spool_directory),
    }
    return [Shown(NAMES[name].option, value, settings.origin(name), NAMES[name].unit) for name, value in values.items()]

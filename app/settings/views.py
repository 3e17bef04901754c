"""Views of the settings: what is recorded for later processes, and what `config show` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.settings.model import DestinationSettings, Given, Settings
from app.settings.names import CAPTURE, DELIVERY, HELD, HELD_BY_FILES, LIMITS, NAMES, TIGHTENING


def delivery_options(settings: Settings) -> dict[str, object]:
    """Options in force that decide about delivery, by name."""
    return {NAMES[name].option: getattr(settings, name) for name in DELIVERY}


def delivery_record(settings: Settings) -> dict[str, object]:
    """Options, of `delivery_options`, that a later process could not find by itself.

    Defaults and the user's files are left out: recorded, they would overrule what the user writes there later.
    """
    return {NAMES[name].option: getattr(settings, name) for name in DELIVERY if name in settings.unseen}


def folder_record(settings: Settings, *, is_held_by_files: bool = False) -> dict[str, object]:
    """Options, as JSON, that decide which bytes of this folder may leave, and the limits of its own files.

    As far as a later process could not find it by itself; and why the folder is held, where it is. One that is held by
    its files alone is so for as long as these say so. That the built-in
    rules are on is told also where nobody says so: a later command's environment must not switch them off.
    """
    record: dict[str, object] = {}
    if "redact_secrets" not in settings.origins:
        record[NAMES["redact_secrets"].option] = settings.redact_secrets
    for name in CAPTURE:
        if name in settings.unseen:
            given: Given = settings.unseen[name]
            value = given.value if name in TIGHTENING else getattr(settings, name)
            record[NAMES[name].option] = list(value) if isinstance(value, list | tuple) else value
    for name in LIMITS:
        if name in settings.folder_limits:
            record[NAMES[name].option] = settings.folder_limits[name].value
    if settings.held and settings.enable:
        record[HELD] = settings.held_because
        if is_held_by_files:
            record[HELD_BY_FILES] = True
    return record


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
    }
    values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    origins = {name: settings.origin(name) for name in NAMES}
    for name, given in settings.folder_limits.items():
        values[name], origins[name] = given.value, f"{given.origin.text}, for this folder's jobs alone"
    lines = [Shown(NAMES[name].option, value, origins[name], NAMES[name].unit) for name, value in values.items()]
    return [*lines, *(_destination(one) for one in settings.destinations.values())]


def _destination(one: DestinationSettings) -> Shown:
    """One more that sessions go to, or what one does not get; of its headers the names."""
    told = {"kind": one.kind, "endpoint": one.endpoint, "preset": one.preset, "project": one.project}
    told = {name: value for name, value in told.items() if value} if one.endpoint else {"kind": one.kind}
    withheld = {NAMES[name].option: _plain(given.value) for name, given in one.withheld.items()}
    headers = {"headers": sorted(one.headers)} if one.headers else {}
    return Shown(f"destinations.{one.name}", {**told, **headers, **withheld}, one.origin.text, "")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value

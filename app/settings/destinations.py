"""Destinations as settings: the tables `[destinations.NAME]` of `config.toml`, and the settings towards one of them.

    [destinations.phoenix]
    kind = "otlp"
    endpoint = "http://127.0.0.1:6006"
    headers = { Authorization = "PHOENIX_AUTHORIZATION" }    the NAME of a variable, or the path of a file

Of the user's and the administrator's file alone: a project must not say where sessions go. `[destinations.helicone]`
may say what Helicone does not get; `exportMode = "off"` switches it off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from pydantic import ValidationError

from app.runtime.url import EndpointError, is_unprotected, normalise
from app.settings.model import (
    DEFAULT,
    HELICONE,
    Complaint,
    DestinationSettings,
    Given,
    Heard,
    Layer,
    Origin,
    Preset,
    Settings,
    SettingsError,
    checked,
)
from app.settings.names import NAMES, nearest
from app.settings.options import words_of
from app.settings.places import text_of
from app.settings.strictest import strictest

TABLE = "destinations"
INTAKE: Literal["intake"] = "intake"
"""Behind Helicone's key and address stands an intake."""
_WITHHOLDING = {NAMES[name].option: name for name in ("export_mode", "redact_patterns")}
_OWN = ("kind", "endpoint", "headers", "preset", "project")
_NAME = r"[a-z][a-z0-9_-]{0,29}"
_VARIABLE = r"[A-Z_][A-Z0-9_]{0,99}"
_HEADER = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"
_HEADER_VALUE = r"[!-~](?:[ -~]{0,3998}[!-~])?"
_Problem: TypeAlias = Callable[[str, str], None]
"""Told an option and what is wrong with it."""
_OURS = frozenset({"content-type", "content-encoding", "content-length", "host", "connection", "transfer-encoding"})


Tables: TypeAlias = tuple[object, Origin]
"""What one file says, and which file that is."""


@dataclass(slots=True)
class Reading:
    """What was found on the way."""

    variables: Mapping[str, str]
    problems: list[str]
    """They make the settings unusable."""
    complaints: list[Complaint]
    """They make one destination unusable: what a variable of this process does not say keeps nothing else back."""


def read(files: list[Tables], reading: Reading) -> dict[str, DestinationSettings]:
    """By name. Of a name in several files the first counts, but for what withholds: there the strictest of all does."""
    found: dict[str, DestinationSettings] = {}
    for tables, origin in files:
        if not isinstance(tables, Mapping):
            reading.problems.append(f"{TABLE} from {origin.text}: it should be tables, [{TABLE}.NAME]")
            continue
        for name, values in tables.items():
            one = _read(str(name), values, origin, reading)
            if one is not None and one.name in found:
                withheld = strictest([found[one.name].withheld, one.withheld])
                found[one.name] = found[one.name].withholding(withheld)
            elif one is not None:
                found[one.name] = one
    _tell_equal(found, reading)
    return found


def _tell_equal(found: Mapping[str, DestinationSettings], reading: Reading) -> None:
    """A receiver that knows a span already takes no other one of its id: the second of two would never have its own."""
    seen: dict[object, str] = {}
    for one in found.values():
        if one.kind != HELICONE:
            by_headers = (
                sorted((name.lower(), text) for name, text in one.headers.items()) if one.preset == "none" else ()
            )
            first = seen.setdefault((one.endpoint, one.project, tuple(by_headers)), one.name)
            if first != one.name and not one.unusable:
                told = f"it has the endpoint and the project of {TABLE}.{first}: only one of them can have them"
                reading.problems.append(f"{TABLE}.{one.name} from {one.origin.text}: {told}")


def towards(settings: Settings, name: str) -> Settings:
    """The settings under which one destination gets what is captured. Raises SettingsError where there is none."""
    one = settings.destinations.get(name)
    if one is None and name == HELICONE and settings.heard is None:
        return settings
    if one is None and name == HELICONE:
        one = DestinationSettings(HELICONE, HELICONE, "", settings.heard.origin)
    if one is None:
        there = ", ".join({HELICONE: None, **settings.destinations})
        raise SettingsError([f"--destination {name}: there is no such destination; there are {there}"])
    if one.unusable:
        raise SettingsError([one.unusable])
    heard: Heard | None = settings.heard if name == HELICONE else None
    withheld = [one.withheld, *([heard.withheld] if heard is not None else [])]
    fields = {field for layer in withheld for field in layer}
    base = {field: Given(getattr(settings, field), settings.origins.get(field, DEFAULT)) for field in fields}
    joined = strictest([base, *withheld])
    changes: dict[str, Any] = {field: given.value for field, given in joined.items()}
    origins = settings.origins | {field: given.origin for field, given in joined.items()}
    if heard is not None:
        # It reads back itself what it delivers, and shows nobody what others have sent.
        changes |= {"preset": INTAKE, "confirm": "off"}
        origins["confirm"] = heard.origin
    if one.kind != HELICONE:
        changes |= {
            "heard": None,
            "destination": one.name,
            "kind": one.kind,
            "endpoint": one.endpoint,
            "headers": dict(one.headers),
            "preset": one.preset,
            "project": one.project,
            # Nothing of it leaves there: with the default it is no part of a key.
            "session_path_prefix": Settings.model_fields["session_path_prefix"].default,
            "readback_url": None,
            "dashboard_url": None,
        }
        origins["endpoint"] = one.origin
    return settings.model_copy(update=changes | {"origins": origins, "common": settings})


def others(settings: Settings) -> Iterator[Settings]:
    """The settings towards each destination beside Helicone, as far as it can be used."""
    common = settings.common or settings
    for name, one in settings.destinations.items():
        if name != HELICONE and not one.unusable:
            yield towards(common, name)


def everything(settings: Settings) -> Iterator[Settings]:
    """The settings towards each destination that is in use; Helicone's first, unless that one alone is switched off."""
    common = settings.common or settings
    helicone = towards(common, HELICONE)
    found = list(others(settings))
    if not found or helicone.export_mode != "off" or common.export_mode == "off":
        yield helicone
    yield from found


def unprotected(found: Mapping[str, DestinationSettings]) -> Iterator[str]:
    """What would be read by everybody on the way."""
    for one in found.values():
        if one.endpoint and is_unprotected(one.endpoint):
            yield (
                f"{TABLE}.{one.name}.endpoint from {one.origin.text}: to another machine, http:// shows headers and"
                " sessions to everybody on the way: use https://, or allow it with OPENCODE_HELICONE_ALLOW_HTTP=true"
            )


def _read(name: str, values: object, origin: Origin, reading: Reading) -> DestinationSettings | None:
    place = f"{TABLE}.{name}" if re.fullmatch(_NAME, name) else f"{TABLE}, a name (not shown)"
    before = len(reading.problems)

    def problem(option: str, why: str) -> None:
        reading.problems.append(f"{place}{option and f'.{option}'} from {origin.text}: {why}")

    if not re.fullmatch(_NAME, name) or not isinstance(values, Mapping):
        problem("", "it should be a table, by a name of at most 30 lower-case letters, digits, - and _")
        return None
    known = _WITHHOLDING if name == HELICONE else {**_WITHHOLDING, **dict.fromkeys(_OWN, "")}
    for option in values.keys() - known.keys():
        shown = option if re.fullmatch("[A-Za-z_]{1,30}", option) else "a name (not shown)"
        problem("", f"{shown}: there is no such setting{nearest(option, known)}; there are {', '.join(known)}")
    withheld = _withheld(values, origin, problem)
    one = DestinationSettings(name, HELICONE, "", origin, withheld=withheld)
    if name != HELICONE:
        one = _receiver(one, place, values, problem, reading)
    return one if len(reading.problems) == before else None


def _receiver(
    one: DestinationSettings, place: str, values: Mapping[str, object], problem: _Problem, reading: Reading
) -> DestinationSettings:
    """Where it is, and what it wants to be told."""
    endpoint = _text(values, "endpoint", problem)
    try:
        endpoint = normalise(endpoint)
    except EndpointError:
        problem("endpoint", "it should be http(s)://host[:port][/path], without user, password, query or fragment")
    if values.get("kind") != "otlp":
        problem("kind", 'it should be "otlp"')
    preset = cast("Preset", values.get("preset", "none"))
    if preset not in get_args(Preset):
        problem("preset", f"it should be one of {', '.join(get_args(Preset))}")
    project = _text(values, "project", problem) if "project" in values else ""
    if project and preset == "none":
        problem("project", "a receiver without a preset is told of it by its own header: see docs/destinations.md")
    headers, unusable = _headers(values.get("headers", {}), problem, reading)
    told = f"{place}: it gets nothing: {unusable}" if unusable else ""
    if told:
        reading.complaints.append(Complaint(f"{told} ({one.origin.text})", told, holds=False))
    return DestinationSettings(one.name, "otlp", endpoint, one.origin, headers, preset, project, one.withheld, told)


def _withheld(values: Mapping[str, object], origin: Origin, problem: _Problem) -> Layer:
    layer: Layer = {}
    for option, field in _WITHHOLDING.items():
        if option in values:
            try:
                layer[field] = Given(checked(field, values[option]), origin)
            except ValidationError as error:
                problem(option, words_of(error))
    return layer


def _text(values: Mapping[str, object], option: str, problem: _Problem) -> str:
    value = values.get(option)
    if isinstance(value, str) and re.fullmatch(_HEADER_VALUE, value):
        return value
    problem(option, "it should be one line of printable ASCII text")
    return ""


def _headers(values: object, problem: _Problem, reading: Reading) -> tuple[dict[str, str], str]:
    """By name; and why not all of them are known. What stands there may be a key, so it is never shown."""
    if not isinstance(values, Mapping):
        problem("headers", 'it should be { HEADER = "VARIABLE" }, or the path of a file in the variable\'s place')
        return {}, ""
    headers: dict[str, str] = {}
    unusable = ""
    for header, where in values.items():
        if not re.fullmatch(_HEADER, header) or header.lower() in _OURS:
            problem("headers", "one of them has a name that cannot be set")
            continue
        text, why = _value(where, reading)
        if why is None:
            problem(f"headers.{header}", "it should be the NAME of a variable or the path of a file, never a value")
        elif why or not re.fullmatch(_HEADER_VALUE, text):
            unusable = f"headers.{header}: {why or 'what it names holds no line of printable ASCII text'}"
        else:
            headers[header] = text
    return headers, unusable


def _value(where: object, reading: Reading) -> tuple[str, str | None]:
    """What is named; and why it is not known, None where nothing is named."""
    if isinstance(where, str) and where.startswith(("/", "~/")):
        problems: list[str] = []
        try:
            text = text_of(Path(where).expanduser(), problems).strip()
        except RuntimeError:
            return "", "the file that it names cannot be read"
        return text, "the file that it names cannot be read" if problems else ""
    if isinstance(where, str) and re.fullmatch(_VARIABLE, where):
        text = reading.variables.get(where, "").strip()
        return text, "" if text else "the variable that it names is not set"
    return "", None

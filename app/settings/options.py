"""Options by their names in files (OpenCode's, records, `config.toml`): reads them; an unknown one holds the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from app.privacy.user_patterns import PatternError, compile_pattern
from app.settings.model import Complaint, Given, Layer, Origin, SettingsError, Source, checked
from app.settings.names import (
    BY_OPTION,
    HELD,
    HELD_BY_FILES,
    IN_CONFIG_FILE,
    IN_PLUGIN,
    IN_RECORD,
    NAMES,
    TIGHTENING,
    nearest,
)

_NAME_MAX = 30
_EXCERPT_MAX = 80


@dataclass(frozen=True, slots=True)
class Options:
    """What one place brings: our entry in a file of OpenCode, what OpenCode handed to the plugin, or a record."""

    values: Mapping[str, object]
    origin: str
    source: Source
    lines: Mapping[str, int] = field(default_factory=dict)
    """By option, from 1."""


def layer_of(options: Options, complaints: list[Complaint]) -> Layer:
    """Its valid values. What is wrong in them costs a value, and where it may have been meant to withhold, it holds."""
    known = IN_RECORD if options.source == "recorded" else IN_PLUGIN
    layer: Layer = {}
    for option, value in options.values.items():
        line = options.lines.get(option)
        place = options.origin if line is None else f"{options.origin} line {line}"
        short = f"{Path(options.origin).name}{place.removeprefix(options.origin)}"
        if options.source == "recorded" and option == HELD:
            complaints.append(Complaint(str(value), str(value), holds=True))
        elif options.source == "recorded" and option == HELD_BY_FILES:
            pass  # says something of the one before
        elif option not in known:
            complaints.append(Complaint(refusal(option, known, place), refusal(option, known, short), holds=True))
        elif value is not None:
            name = known[option]
            try:
                layer[name] = Given(_usable(name, value, options.source), Origin(options.source, place))
            except _UnusableError as error:
                holds = name in TIGHTENING and not (name == "redact_secrets" and value is False)
                why = f"{error}{unit_of(name)}"
                complaints.append(Complaint(f"{option} from {place}: {why}", f"{option} from {short}: {why}", holds))
    return layer


class _UnusableError(ValueError):
    """Why a value cannot be used; without the value."""


def _usable(name: str, value: object, source: Source) -> object:
    """The value as the settings hold it. Raises _UnusableError."""
    try:
        usable = checked(name, value)
    except ValidationError as error:
        raise _UnusableError(words_of(error)) from None
    if isinstance(usable, tuple):
        for number, pattern in enumerate(usable, 1):
            try:
                compile_pattern(number, pattern)
            except PatternError as error:
                raise _UnusableError(error.without_text) from None
    if name == "redact_secrets" and usable is False and source != "recorded":
        raise _UnusableError(f"it can be switched on here, and off only by {NAMES[name].variable}")
    return usable


def words_of(error: ValidationError) -> str:
    """The first that is wrong, without the value."""
    message = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
    return words(message)


def words(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "it should", 1)


def unit_of(name: str) -> str:
    return f" ({NAMES[name].unit})" if NAMES[name].unit else ""


def excerpt(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _EXCERPT_MAX else text[:_EXCERPT_MAX] + "…"


def from_values(values: Mapping[str, object], known: Mapping[str, str], origin: Origin, problems: list[str]) -> Layer:
    """Values that have their types already. `known` maps the names that may stand here to fields."""
    problems += [refusal(option, known, origin.text) for option in values if option not in known]
    return {
        known[option]: Given(value, origin) for option, value in values.items() if option in known and value is not None
    }


def from_arguments(arguments: Iterable[str]) -> dict[str, object]:
    """What `option=value` arguments say, by field name, for the command line's layer. Raises SettingsError."""
    values: dict[str, object] = {}
    problems = []
    for argument in arguments:
        option, equals, text = argument.partition("=")
        if option not in IN_CONFIG_FILE:
            problems.append(refusal(option, IN_CONFIG_FILE, "command line"))
        elif not equals:
            problems.append(f"{option} from command line: give a value, {option}=...")
        else:
            field_name = IN_CONFIG_FILE[option]
            values[field_name] = NAMES[field_name].read(text)
    if problems:
        raise SettingsError(problems)
    return values


def refusal(option: str, known: Mapping[str, str], place: str) -> str:
    # What is like no name may be a secret, written where a name should stand or filled in there for `{env:…}`.
    near = nearest(option, known)
    is_name = len(option) <= _NAME_MAX and (near or option in BY_OPTION or re.fullmatch("[A-Za-z_]*", option))
    shown = json.dumps(option) if is_name else "a name (not shown)"
    name = f"{shown} from {place}"
    if re.sub("[^a-z]", "", option.lower()).endswith("apikey"):
        return f"{name}: the API key is read from HELICONE_API_KEY alone, in the environment or in an .env file"
    if option in BY_OPTION:
        return f"{name}: it cannot be set here; set {NAMES[BY_OPTION[option]].variable}"
    return f"{name}: there is no such setting{near or '; there are ' + ', '.join(known)}"

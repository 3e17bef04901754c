"""Layers: puts the sources together, and decides for each setting which one wins (strictest for what may leave).

what may leave      the strictest of all layers; patterns add up (see `strictest`)
keys, addresses     from the command line, the environment and the user's own files alone
limits              those of a project's files are for its folder's jobs alone
everything else     the highest layer wins
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from app.runtime.url import EndpointError, is_unprotected, normalise
from app.settings import destinations
from app.settings.destinations import TABLE, Reading, Tables
from app.settings.model import SEEN_LATER, Complaint, Given, Layer, Origin, Settings, SettingsError, checked
from app.settings.names import (
    ALLOWED_ENDPOINTS,
    IN_CONFIG_FILE,
    IN_SYSTEM_FILE,
    LIMITS,
    NAMES,
    ON_COMMAND_LINE,
    TIGHTENING,
)
from app.settings.options import Options, excerpt, from_values, layer_of, unit_of, words, words_of
from app.settings.places import text_of
from app.settings.strictest import strictest
from app.settings.variables import any_dotenv, from_dotenv, from_folder_dotenv, from_variables


def load(  # noqa: PLR0913 - one for each kind of source
    *,
    environ: Mapping[str, str],
    base: Path,
    command_line: Mapping[str, object] | None = None,
    folder_dotenv: Path | None = None,
    dotenv: Sequence[Path] = (),
    options: Sequence[Options] = (),
    complaints: Iterable[Complaint] = (),
    config_file: Path | None = None,
    system_file: Path | None = None,
) -> Settings:
    """The settings in force. Raises SettingsError with every problem found in what the user says directly.

    What is wrong in `options` is told in the settings' complaints, after `complaints` about the files that they are of.
    A value that is overruled is not judged. `base` is the folder against which a relative spool directory is taken.
    `command_line` is by field name; None means not given, there and in options. Files must exist; of `dotenv` and of
    `options` the first are the highest.
    """
    problems: list[str] = []
    told = list(complaints)
    environment = from_variables(environ, lambda variable: Origin("environment", f"environment {variable}"), problems)
    layers = [
        from_values(command_line or {}, ON_COMMAND_LINE, Origin("command line", "command line"), problems),
        environment,
        *([from_folder_dotenv(folder_dotenv, environment, problems, told)] if folder_dotenv else []),
        *(from_dotenv(path, problems) for path in dotenv),
        *(layer_of(one, told) for one in options),
    ]
    tables: list[Tables] = []
    pinned, allowed = _from_system_file(system_file, problems, tables)
    layers += [_from_config_file(config_file, problems, tables), pinned]
    _read_key_file(layers, problems)
    secrets = _secrets(layers)
    for layer in layers:
        _judge_what_may_leave(layer, problems, secrets)
    settings = _validated(layers, base, problems, secrets)
    if settings is not None and tables:
        variables = ChainMap(dict(environ), *(any_dotenv(path) for path in dotenv))
        found = destinations.read(tables, Reading(variables, problems, told))
        settings = settings.model_copy(update={"destinations": found})
        problems += [] if settings.allow_http else destinations.unprotected(found)
    if settings is not None and allowed is not None:
        problems += _not_allowed(settings, allowed, system_file)
    if settings is None or problems:
        raise SettingsError(problems)
    return settings.model_copy(update={"complaints": tuple(dict.fromkeys(told))})


def _judge_what_may_leave(layer: Layer, problems: list[str], secrets: Sequence[str]) -> None:
    """Each layer counts there, not only the highest."""
    for name in TIGHTENING:
        if name in layer:
            try:
                checked(name, layer[name].value)
            except ValidationError as error:
                problems.append(_problem(name, layer.pop(name), words_of(error), secrets))


def _validated(layers: Sequence[Layer], base: Path, problems: list[str], secrets: Sequence[str]) -> Settings | None:
    winning = ChainMap(*layers)
    shared = ChainMap(*(_without_limits_of_projects(layer) for layer in layers))
    merged = {**shared, **strictest(layers)}
    values: dict[str, Any] = {name: given.value for name, given in merged.items()} | {
        "origins": {name: given.origin for name, given in merged.items()},
        "folder_limits": {name: winning[name] for name in LIMITS if name in winning and _is_of_project(winning[name])},
        "unseen": {
            **{name: given for name, given in shared.items() if _is_unseen(given) and name not in TIGHTENING},
            **strictest([{name: given for name, given in layer.items() if _is_unseen(given)} for layer in layers]),
        },
    }
    try:
        settings = Settings(**values)
        spool = base / settings.spool_directory.expanduser()
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            name = str(detail["loc"][0])
            problems.append(_problem(name, merged[name], words(detail["msg"]), secrets))
        return None
    except RuntimeError as error:  # `~name` of nobody
        problems.append(_problem("spool_directory", merged["spool_directory"], str(error), ()))
        return None
    for name, url in (("endpoint", settings.endpoint), ("readback_url", settings.readback_url)):
        if url is not None and is_unprotected(url) and not settings.allow_http:
            why = (
                "to another machine, http:// shows the key and your sessions to everybody on the way: use https://,"
                " or allow it with OPENCODE_HELICONE_ALLOW_HTTP=true"
            )
            problems.append(_problem(name, merged[name], why, ()))
    return settings.model_copy(update={"spool_directory": spool})


def _without_limits_of_projects(layer: Layer) -> Layer:
    return {name: given for name, given in layer.items() if name not in LIMITS or not _is_of_project(given)}


def _is_of_project(given: Given) -> bool:
    return given.origin.source == "project"


def _is_unseen(given: Given) -> bool:
    """Whether a later process could not find it by itself."""
    return given.origin.source not in SEEN_LATER


def _secrets(layers: Iterable[Layer]) -> list[str]:
    keys = (layer["api_key"].value for layer in layers if "api_key" in layer)
    return [json.dumps(key.get_secret_value())[1:-1] for key in keys if isinstance(key, SecretStr)]


def _problem(name: str, given: Given, message: str, secrets: Iterable[str]) -> str:
    """One line. The value is cut, and left out where it holds the API key or could hold a password."""
    text = excerpt(given.value)
    if (
        name == "api_key"
        or any(secret in json.dumps(given.value, default=str) for secret in secrets)
        or (name in {"endpoint", "readback_url", "dashboard_url"} and re.search("[@?#]", text))
    ):
        text = "(not shown)"
    return f"{NAMES[name].option} = {text} from {given.origin.text}: {message}{unit_of(name)}"


def _from_config_file(path: Path | None, problems: list[str], tables: list[Tables]) -> Layer:
    if path is None:
        return {}
    options = _toml(path, "config file", problems)
    origin = Origin("config file", f"config file {path}")
    _take_tables(options, origin, tables)
    return from_values(options, IN_CONFIG_FILE, origin, problems)


def _take_tables(options: dict[str, Any], origin: Origin, tables: list[Tables]) -> None:
    if TABLE in options:
        tables.append((options.pop(TABLE), origin))


def _from_system_file(
    path: Path | None, problems: list[str], tables: list[Tables]
) -> tuple[Layer, tuple[str, ...] | None]:
    """What the administrator pins, and the endpoints that are allowed; None: all are.

    What is wrong there is a problem of everybody's settings: then nothing is captured and nothing leaves.
    """
    if path is None:
        return {}, None
    options = _toml(path, "system file", problems)
    origin = Origin("system file", f"system file {path}")
    _take_tables(options, origin, tables)
    listed = options.pop(ALLOWED_ENDPOINTS, None)
    layer = from_values(options, IN_SYSTEM_FILE, origin, problems)
    if listed is None:
        return layer, None
    if not isinstance(listed, list) or not listed:
        problems.append(f"{ALLOWED_ENDPOINTS} from {origin.text}: it should be a list of URLs, not an empty one")
        return layer, None
    allowed = []
    for url in listed:
        try:
            allowed.append(normalise(str(url)))
        except EndpointError as error:
            problems.append(f"{ALLOWED_ENDPOINTS} from {origin.text}: {error}")
    if allowed:
        layer["endpoint"] = Given(allowed[0], origin)  # for those who choose none
    return layer, tuple(allowed)


def _not_allowed(settings: Settings, allowed: Sequence[str], system_file: Path | None) -> Iterator[str]:
    """The key goes to both, and what is read back shows what was sent."""
    for name, url in (("endpoint", settings.endpoint), ("readback_url", settings.readback_url)):
        if url is not None and not _is_allowed(url, allowed):
            told = f"system file {system_file} allows only {', '.join(allowed)}"
            yield f"{NAMES[name].option} from {settings.origin(name)}: {told}"
    for one in settings.destinations.values():
        if one.endpoint and not _is_allowed(one.endpoint, allowed):
            told = f"system file {system_file} allows only {', '.join(allowed)}"
            yield f"{TABLE}.{one.name}.endpoint from {one.origin.text}: {told}"


def _is_allowed(url: str, allowed: Sequence[str]) -> bool:
    return any(url == one or url.startswith(f"{one}/") for one in allowed)


def _toml(path: Path, kind: str, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of(path, problems))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(f"{kind} {path}: it is not TOML: {error}")
        return {}


def _read_key_file(layers: Sequence[Layer], problems: list[str]) -> None:
    """The highest layer that names a key or a file of one decides. A file of a lower one is not looked at."""
    named = next((layer for layer in layers if layer.keys() & {"api_key", "api_key_file"}), {})
    given = named.get("api_key_file")
    if given is None:
        return
    if "api_key" in named:
        problems.append(f"HELICONE_API_KEY and HELICONE_API_KEY_FILE from {given.origin.text}: set only one of them")
        return
    try:
        path = checked("api_key_file", given.value)
    except ValidationError:
        return  # told of with the other values
    assert isinstance(path, Path)  # noqa: S101 - checked
    problems_before = len(problems)
    key = text_of(path, problems).strip()
    if key:
        named["api_key"] = Given(SecretStr(key), Origin(given.origin.source, f"{path}, {given.origin.text}"))
    elif len(problems) == problems_before:
        problems.append(f"{path}: it holds no key")

"""The sources, each a layer of values with their origins; the highest wins."""

from __future__ import annotations

import json
import re
import tomllib
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from os.path import isfile
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream
from platformdirs import user_config_path
from pydantic import SecretStr, ValidationError

from app.endpoint import is_unprotected
from app.settings.model import DEFAULT, PROGRAM, Given, Layer, Origin, Settings, SettingsError
from app.settings.names import BY_OPTION, IN_CONFIG_FILE, IN_PLUGIN, IN_RECORD, NAMES, ON_COMMAND_LINE, VARIABLES

_FILE_BYTES_MAX = 1_000_000
_NAME_MAX = 30
_EXCERPT_MAX = 80


@dataclass(frozen=True, slots=True)
class Plugin:
    """The options that OpenCode hands to the plugin, as given in opencode.json."""

    options: Mapping[str, object]
    origin: str = "plugin options"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Options that a hook recorded (see `to_record`). They stand where the plugin's own options would."""

    options: Mapping[str, object]
    origin: str


def load(
    *,
    environ: Mapping[str, str],
    base: Path,
    command_line: Mapping[str, object] | None = None,
    dotenv: Sequence[Path] = (),
    plugin: Plugin | Recorded | None = None,
    config_file: Path | None = None,
) -> Settings:
    """The settings in force. Raises SettingsError with every problem found; a value that is overruled is not judged.

    `base` is the folder against which a relative spool directory is taken. `command_line` is by field name; None
    means not given, there and in options. Of the `dotenv` files, which must exist, the first wins.
    """
    problems: list[str] = []
    layers = [
        _from_options(command_line or {}, ON_COMMAND_LINE, Origin("command line", "command line"), problems),
        _from_variables(environ, lambda variable: Origin("environment", f"environment {variable}"), problems),
        *(_from_dotenv(path, problems) for path in dotenv),
        _from_plugin(plugin, problems),
        _from_config_file(config_file, problems),
    ]
    settings = _validated(layers, base, problems)
    if settings is None or problems:
        raise SettingsError(problems)
    return settings


def _validated(layers: Sequence[Layer], base: Path, problems: list[str]) -> Settings | None:
    winning = ChainMap(*layers)
    origins = {name: given.origin for name, given in winning.items()}
    arguments: dict[str, Any] = {"layers": [*layers, {"origins": Given(origins, DEFAULT)}]}
    try:
        settings = Settings(**arguments)
        spool = base / settings.spool_directory.expanduser()
    except ValidationError as error:
        keys = (layer["api_key"].value for layer in layers if "api_key" in layer)
        secrets = [json.dumps(key.get_secret_value())[1:-1] for key in keys if isinstance(key, SecretStr)]
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            name = str(detail["loc"][0])
            problems.append(_problem(name, winning[name], detail["msg"], secrets))
        return None
    except RuntimeError as error:  # `~name` of nobody
        problems.append(_problem("spool_directory", winning["spool_directory"], str(error), ()))
        return None
    for name, url in (("endpoint", settings.endpoint), ("readback_url", settings.readback_url)):
        if url is not None and is_unprotected(url) and not settings.allow_http:
            words = (
                "to another machine, http:// shows the key and your sessions to everybody on the way: use https://,"
                " or allow it with OPENCODE_HELICONE_ALLOW_HTTP=true"
            )
            problems.append(_problem(name, winning[name], words, ()))
    return settings.model_copy(update={"spool_directory": spool})


def _problem(name: str, given: Given, message: str, secrets: Iterable[str]) -> str:
    """One line. The value is cut, and left out where it holds the API key or could hold a password."""
    text = json.dumps(given.value, default=str)
    if (
        name == "api_key"
        or any(secret in text for secret in secrets)
        or (name in {"endpoint", "readback_url"} and re.search("[@?#]", text))
    ):
        text = "(not shown)"
    elif len(text) > _EXCERPT_MAX:
        text = text[:_EXCERPT_MAX] + "…"
    words = message.removeprefix("Value error, ").replace("Input should", "it should", 1)
    unit = f" ({NAMES[name].unit})" if NAMES[name].unit else ""
    return f"{NAMES[name].option} = {text} from {given.origin.text}: {words}{unit}"


def _from_options(
    options: Mapping[str, object], known: Mapping[str, str], origin: Origin, problems: list[str]
) -> Layer:
    """Options that have their types already. `known` maps the names that may stand here to fields."""
    problems += [_refusal(option, known, origin) for option in options if option not in known]
    return {
        known[option]: Given(value, origin)
        for option, value in options.items()
        if option in known and value is not None
    }


def from_arguments(arguments: Iterable[str]) -> dict[str, object]:
    """What `option=value` arguments say, by field name, for the command line's layer. Raises SettingsError."""
    values: dict[str, object] = {}
    problems = []
    for argument in arguments:
        option, equals, text = argument.partition("=")
        if option not in IN_CONFIG_FILE:
            problems.append(_refusal(option, IN_CONFIG_FILE, Origin("command line", "command line")))
        elif not equals:
            problems.append(f"{option} from command line: give a value, {option}=...")
        else:
            field_name = IN_CONFIG_FILE[option]
            values[field_name] = NAMES[field_name].read(text)
    if problems:
        raise SettingsError(problems)
    return values


def _refusal(option: str, known: Mapping[str, str], origin: Origin) -> str:
    # What is longer than any name may be the key itself, written where a name should stand.
    shown = json.dumps(option) if len(option) <= _NAME_MAX else "a name (not shown)"
    name = f"{shown} from {origin.text}"
    if re.sub("[^a-z]", "", option.lower()).endswith("apikey"):
        return f"{name}: the API key is read from HELICONE_API_KEY alone, in the environment or in an .env file"
    if option in BY_OPTION:
        return f"{name}: it cannot be set here; set {NAMES[BY_OPTION[option]].variable}"
    return f"{name}: there is no such setting; there are {', '.join(known)}"


def _from_variables(variables: Mapping[str, str], origin: Callable[[str], Origin], problems: list[str]) -> Layer:
    layer: Layer = {}
    for variable, name, read in VARIABLES:
        text = variables.get(variable, "").strip()
        if text and name in layer:
            first = NAMES[name].variable
            problems.append(f"{first} and {variable} from {origin(variable).text}: they are one setting; set only one")
        elif text:
            layer[name] = Given(read(text), origin(variable))
    return layer


def _from_dotenv(path: Path, problems: list[str]) -> Layer:
    """Values as they stand: `${NAME}` is not filled in, neither from this file nor from the environment."""
    ours = {variable for variable, _, _ in VARIABLES}
    variables: dict[str, str] = {}
    for binding in parse_stream(StringIO(_text(path, problems))):
        text, number = binding.original
        blank_lines = text.count("\n", 0, len(text) - len(text.lstrip()))  # they count as the binding's own
        line = f"line {number + blank_lines} of {path}"
        if binding.error and any(variable in text for variable in ours):
            problems.append(f"{line}: it is not of the form NAME=value")
        elif binding.key in ours:
            variables[binding.key] = binding.value or ""
            if "${" in variables[binding.key] and "REDACT" not in binding.key:
                problems.append(f"{line}: ${{…}} is not filled in here; write the value of {binding.key} out")
    return _from_variables(variables, lambda _: Origin(".env", f".env {path}"), problems)


def _from_plugin(plugin: Plugin | Recorded | None, problems: list[str]) -> Layer:
    if plugin is None:
        return {}
    known = IN_PLUGIN if isinstance(plugin, Plugin) else IN_RECORD
    return _from_options(plugin.options, known, Origin("plugin", plugin.origin), problems)


def _from_config_file(path: Path | None, problems: list[str]) -> Layer:
    if path is None:
        return {}
    try:
        options = tomllib.loads(_text(path, problems))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(f"config file {path}: it is not TOML: {error}")
        return {}
    return _from_options(options, IN_CONFIG_FILE, Origin("config file", f"config file {path}"), problems)


def _text(path: Path, problems: list[str]) -> str:
    """The file's text; what is not UTF-8 in it comes as Python gives such bytes in the environment."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        problems.append(f"{path}: it cannot be read: {error.strerror}")
        return ""
    if len(content) > _FILE_BYTES_MAX:
        problems.append(f"{path}: it is larger than {_FILE_BYTES_MAX} bytes")
        return ""
    return content.decode("utf-8-sig", "surrogateescape")


# Standard places. `.env` of the working directory is for commands that a person types; the hook and the worker that
# it starts run in projects of others, whose `.env` must not redirect them.


def config_folder() -> Path:
    """The user's own folder of `config.toml` and `.env`."""
    return user_config_path(PROGRAM, appauthor=False)


def config_file_in(folder: Path) -> Path | None:
    return _existing(folder / "config.toml")


def dotenv_of_command(cwd: Path, folder: Path, env_file: Path | None = None) -> tuple[Path, ...]:
    """For a command that a person typed in `cwd`. An `env_file` that was named stands in for the one of `cwd`."""
    return tuple(path for path in (env_file or _existing(cwd / ".env"), *dotenv_unattended(folder)) if path)


def dotenv_unattended(folder: Path) -> tuple[Path, ...]:
    """For the hook and for the worker that it starts."""
    path = _existing(folder / ".env")
    return (path,) if path else ()


def _existing(path: Path) -> Path | None:
    return path if isfile(path) else None  # noqa: PTH113 - Path.is_file raises where the folder may not be read

"""What the program is told to do: one frozen `Settings`, and where each of its values came from.

    command line > environment > .env > plugin options (or what was recorded of them) > user config file > default

Sources are arguments: nothing here reads `os.environ` or the working directory; only the standard folders come from
the system (platformdirs, which honours the XDG variables). A value that is empty in the environment or in an `.env`
file counts as not set. A list in a higher source replaces the lower one whole.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from os.path import isfile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from dotenv.parser import parse_stream
from platformdirs import user_config_path, user_data_path
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, Strict, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.endpoint import EndpointError, is_unprotected, normalise
from app.place import default_spool

_PROGRAM = "opencode-helicone"
_FILE_BYTES_MAX = 1_000_000
_NAME_MAX = 30
_EXCERPT_MAX = 80

T = TypeVar("T")


class SettingsError(ValueError):
    """Settings that cannot be used. One line; `problems` has them one by one, each naming setting, value and origin."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))

    @property
    def for_logs(self) -> str:
        """The same without the text of patterns: somebody may have written the very secret down as one."""
        return "; ".join(re.sub("^redactPatterns = .*? from ", "redactPatterns from ", one) for one in self.problems)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: the kind of source, and words for a person, e.g. `environment HELICONE_ENDPOINT`."""

    source: Literal["command line", "environment", ".env", "plugin", "config file", "default"]
    text: str


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


# What a value must be. The words go into the error as they are; none of them quotes the value.


def _folder(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value) or re.search(r"[\x00-\x1f\x7f]", str(value)):
        raise ValueError("it should be the path of a folder")
    return value


def _path_prefix(text: str) -> str:
    prefix = text.rstrip("/")
    if not re.match("/[^/]", prefix) or not prefix.isprintable():
        raise ValueError('it should start with "/", name something, and be printable')
    return prefix


def _person(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("it should be one line of printable text")
    return text.strip()


def _patterns(value: object) -> tuple[str, ...]:
    # Lone surrogates: JSON can carry them, and a variable that is not UTF-8 becomes them.
    if not isinstance(value, list | tuple) or not all(
        isinstance(pattern, str) and pattern and not re.search("[\ud800-\udfff]", pattern) for pattern in value
    ):
        raise ValueError("it should be a list of regular expressions (in a variable: a JSON list of strings)")
    return tuple(value)


def _key(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{1,1000}", secret.get_secret_value()):
        raise ValueError("it should be at most 1000 printable ASCII characters without spaces")
    return secret


def _url(text: str) -> str:
    try:
        return normalise(text)
    except EndpointError:
        words = "it should be http(s)://host[:port][/path], without user, password, query or fragment"
        raise ValueError(words) from None


_Truth: TypeAlias = Annotated[bool, Strict()]
_Count: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
_Bytes: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=2**50)]
_Milliseconds: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=3660 * 24 * 60 * 60 * 1000)]
_Folder: TypeAlias = Annotated[Path, BeforeValidator(_folder)]
_PathPrefix: TypeAlias = Annotated[str, Field(strict=True, max_length=200), AfterValidator(_path_prefix)]
_Person: TypeAlias = Annotated[str, Field(strict=True, max_length=200), AfterValidator(_person)]
_Pattern: TypeAlias = Annotated[str, Field(max_length=10_000)]
_Patterns: TypeAlias = Annotated[tuple[_Pattern, ...], Field(max_length=1000), BeforeValidator(_patterns)]
_Key: TypeAlias = Annotated[SecretStr, AfterValidator(_key)]
_Url: TypeAlias = Annotated[str, Field(strict=True, max_length=2000), AfterValidator(_url)]


def _default_spool() -> Path:
    return default_spool(user_data_path(_PROGRAM, appauthor=False))


class Settings(BaseSettings):
    """Every setting. `load` makes it from the sources; made directly, it holds what it is given and defaults."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enable: _Truth = True
    """False: nothing is captured and nothing is sent."""
    api_key: _Key | None = None
    """None: jobs wait."""
    endpoint: _Url = "https://api.worker.helicone.ai"
    """Without a slash at its end."""
    allow_http: _Truth = False
    """True: an endpoint on another machine may be http://, where everybody on the way reads along."""
    export_mode: Literal["full", "metadata_only", "off"] = "full"
    redact_patterns: _Patterns = ()
    """Regular expressions, not compiled here: whether they compile is for the redaction to say."""
    redact_secrets: _Truth = True
    user_id: _Person | None = None
    session_path_prefix: _PathPrefix = "/opencode"
    """Starts with a slash and ends without one."""
    worker: Literal["auto", "external"] = "auto"
    """auto: the hook makes sure that a worker runs. external: somebody else does."""
    spool_directory: _Folder = Field(default_factory=_default_spool)
    """Absolute when `load` made it."""
    max_spool_bytes: _Bytes = 52_428_800
    max_spool_age_ms: _Milliseconds = 604_800_000
    flush_interval_ms: _Milliseconds = 30_000
    max_retries: _Count = 5
    retry_base_delay_ms: _Milliseconds = 1000
    confirm: Literal["auto", "on", "off"] = "auto"
    """auto: what is delivered to a self-hosted Helicone is read back, and one job an hour on the cloud. on: all."""
    readback_url: _Url | None = None
    """Where to read back; None: as the endpoint says."""

    origins: dict[str, Origin] = Field(default_factory=dict, repr=False)
    """By field. A field that is not in it has its default."""

    def origin(self, name: str) -> str:
        """Where the value of the field `name` came from, e.g. `environment HELICONE_ENDPOINT`, `default`."""
        _NAMES[name]  # a name that is none is a bug, not a default
        return self.origins.get(name, _DEFAULT).text

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - reads os.environ: not used
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - fills ${…} from os.environ: not used
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - nobody asked for it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        layers = init_settings().get("layers")
        if layers is None:
            return (init_settings,)
        return tuple(_Source(settings_cls, layer) for layer in layers)


# Names and sources


def _read_truth(text: str) -> object:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return words.get(text.lower(), text)


def _read_whole(text: str) -> object:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _read_list(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_alias(text: str) -> object:
    r"""A JSON list of strings, or patterns with commas between them, as the plugin that this one replaces had it.

    Its comma would cut `\d{2,4}` into two patterns that compile and redact nothing: that needs the JSON list.
    """
    if text == "[]" or re.match(r'\[\s*"', text):
        return _read_list(text)
    if re.search(r"\{[0-9]*,[0-9]*\}", text):
        return text
    return [pattern for piece in text.split(",") if (pattern := piece.strip())]


@dataclass(frozen=True, slots=True)
class _Name:
    """A setting's names outside of Python, its unit, and how its variable's text is read.

    A `read` that does not understand the text returns it as it is: then the validation refuses it, in its own words.
    """

    option: str
    variable: str
    read: Callable[[str], object] = str
    unit: str = ""
    plugin: bool = True
    """It may stand among the plugin's options."""


_NAMES = {
    "enable": _Name("enable", "OPENCODE_HELICONE_ENABLE", _read_truth),
    "api_key": _Name("apiKey", "HELICONE_API_KEY", SecretStr, plugin=False),
    "endpoint": _Name("endpoint", "HELICONE_ENDPOINT", plugin=False),
    "allow_http": _Name("allowHttp", "OPENCODE_HELICONE_ALLOW_HTTP", _read_truth, plugin=False),
    "export_mode": _Name("exportMode", "OPENCODE_HELICONE_EXPORT_MODE", plugin=False),
    "redact_patterns": _Name("redactPatterns", "OPENCODE_HELICONE_REDACT_PATTERNS", _read_list),
    "redact_secrets": _Name("redactSecrets", "OPENCODE_HELICONE_REDACT_SECRETS", _read_truth, plugin=False),
    "user_id": _Name("userId", "OPENCODE_HELICONE_USER_ID", plugin=False),
    "session_path_prefix": _Name("sessionPathPrefix", "OPENCODE_HELICONE_SESSION_PATH_PREFIX"),
    "worker": _Name("worker", "OPENCODE_HELICONE_WORKER"),
    "spool_directory": _Name("spoolDirectory", "OPENCODE_HELICONE_SPOOL_DIRECTORY"),
    "max_spool_bytes": _Name("maxSpoolSize", "OPENCODE_HELICONE_MAX_SPOOL_SIZE", _read_whole, "bytes"),
    "max_spool_age_ms": _Name("maxSpoolAge", "OPENCODE_HELICONE_MAX_SPOOL_AGE", _read_whole, "milliseconds"),
    "flush_interval_ms": _Name("flushInterval", "OPENCODE_HELICONE_FLUSH_INTERVAL", _read_whole, "milliseconds"),
    "max_retries": _Name("maxRetries", "OPENCODE_HELICONE_MAX_RETRIES", _read_whole, "retries"),
    "retry_base_delay_ms": _Name("retryBaseDelay", "OPENCODE_HELICONE_RETRY_BASE_DELAY", _read_whole, "milliseconds"),
    "confirm": _Name("confirm", "OPENCODE_HELICONE_CONFIRM"),
    # It gets the API key: a project's own file must not say where that goes.
    "readback_url": _Name("readbackUrl", "HELICONE_READBACK_URL", plugin=False),
}
_VARIABLES = [(name.variable, field_name, name.read) for field_name, name in _NAMES.items()]
_VARIABLES.append(("OPENCODE_HELICONE_REDACT_REGEX", "redact_patterns", _read_alias))

_CAPTURE = ("enable", "export_mode", "redact_patterns", "redact_secrets", "session_path_prefix", "user_id")
_DELIVERY = (
    "flush_interval_ms",
    "max_retries",
    "retry_base_delay_ms",
    "max_spool_bytes",
    "max_spool_age_ms",
    "confirm",
)

_DEFAULT = Origin("default", "default")
_BY_OPTION = {name.option: field_name for field_name, name in _NAMES.items()}
_IN_CONFIG_FILE = {option: name for option, name in _BY_OPTION.items() if name != "api_key"}
_IN_PLUGIN = {option: name for option, name in _BY_OPTION.items() if _NAMES[name].plugin}
_IN_RECORD = {option: name for option, name in _BY_OPTION.items() if name in _CAPTURE + _DELIVERY}
_ON_COMMAND_LINE = {name: name for name in _NAMES if name != "api_key"}


@dataclass(frozen=True, slots=True)
class _Given:
    value: object = field(repr=False)
    origin: Origin


_Layer: TypeAlias = dict[str, _Given]


class _Source(PydanticBaseSettingsSource):
    """One layer, in the form that pydantic-settings merges."""

    def __init__(self, settings_cls: type[BaseSettings], layer: _Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # only sources that go field by field are asked

    def __call__(self) -> dict[str, Any]:
        return {name: given.value for name, given in self._layer.items()}


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
        _from_options(command_line or {}, _ON_COMMAND_LINE, Origin("command line", "command line"), problems),
        _from_variables(environ, lambda variable: Origin("environment", f"environment {variable}"), problems),
        *(_from_dotenv(path, problems) for path in dotenv),
        _from_plugin(plugin, problems),
        _from_config_file(config_file, problems),
    ]
    settings = _validated(layers, base, problems)
    if settings is None or problems:
        raise SettingsError(problems)
    return settings


def _validated(layers: Sequence[_Layer], base: Path, problems: list[str]) -> Settings | None:
    winning = ChainMap(*layers)
    origins = {name: given.origin for name, given in winning.items()}
    arguments: dict[str, Any] = {"layers": [*layers, {"origins": _Given(origins, _DEFAULT)}]}
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


def _problem(name: str, given: _Given, message: str, secrets: Iterable[str]) -> str:
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
    unit = f" ({_NAMES[name].unit})" if _NAMES[name].unit else ""
    return f"{_NAMES[name].option} = {text} from {given.origin.text}: {words}{unit}"


def _from_options(
    options: Mapping[str, object], known: Mapping[str, str], origin: Origin, problems: list[str]
) -> _Layer:
    """Options that have their types already. `known` maps the names that may stand here to fields."""
    problems += [_refusal(option, known, origin) for option in options if option not in known]
    return {
        known[option]: _Given(value, origin)
        for option, value in options.items()
        if option in known and value is not None
    }


def from_arguments(arguments: Iterable[str]) -> dict[str, object]:
    """What `option=value` arguments say, by field name, for the command line's layer. Raises SettingsError."""
    values: dict[str, object] = {}
    problems = []
    for argument in arguments:
        option, equals, text = argument.partition("=")
        if option not in _IN_CONFIG_FILE:
            problems.append(_refusal(option, _IN_CONFIG_FILE, Origin("command line", "command line")))
        elif not equals:
            problems.append(f"{option} from command line: give a value, {option}=...")
        else:
            field_name = _IN_CONFIG_FILE[option]
            values[field_name] = _NAMES[field_name].read(text)
    if problems:
        raise SettingsError(problems)
    return values


def _refusal(option: str, known: Mapping[str, str], origin: Origin) -> str:
    # What is longer than any name may be the key itself, written where a name should stand.
    shown = json.dumps(option) if len(option) <= _NAME_MAX else "a name (not shown)"
    name = f"{shown} from {origin.text}"
    if re.sub("[^a-z]", "", option.lower()).endswith("apikey"):
        return f"{name}: the API key is read from HELICONE_API_KEY alone, in the environment or in an .env file"
    if option in _BY_OPTION:
        return f"{name}: it cannot be set here; set {_NAMES[_BY_OPTION[option]].variable}"
    return f"{name}: there is no such setting; there are {', '.join(known)}"


def _from_variables(variables: Mapping[str, str], origin: Callable[[str], Origin], problems: list[str]) -> _Layer:
    layer: _Layer = {}
    for variable, name, read in _VARIABLES:
        text = variables.get(variable, "").strip()
        if text and name in layer:
            first = _NAMES[name].variable
            problems.append(f"{first} and {variable} from {origin(variable).text}: they are one setting; set only one")
        elif text:
            layer[name] = _Given(read(text), origin(variable))
    return layer


def _from_dotenv(path: Path, problems: list[str]) -> _Layer:
    """Values as they stand: `${NAME}` is not filled in, neither from this file nor from the environment."""
    ours = {variable for variable, _, _ in _VARIABLES}
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


def _from_plugin(plugin: Plugin | Recorded | None, problems: list[str]) -> _Layer:
    if plugin is None:
        return {}
    known = _IN_PLUGIN if isinstance(plugin, Plugin) else _IN_RECORD
    return _from_options(plugin.options, known, Origin("plugin", plugin.origin), problems)


def _from_config_file(path: Path | None, problems: list[str]) -> _Layer:
    if path is None:
        return {}
    try:
        options = tomllib.loads(_text(path, problems))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(f"config file {path}: it is not TOML: {error}")
        return {}
    return _from_options(options, _IN_CONFIG_FILE, Origin("config file", f"config file {path}"), problems)


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
    return user_config_path(_PROGRAM, appauthor=False)


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


# What others need of the settings


def delivery_options(settings: Settings) -> dict[str, object]:
    """By plugin name, the values in force of what decides about delivery."""
    return {_NAMES[name].option: getattr(settings, name) for name in _DELIVERY}


def capture_options(settings: Settings) -> dict[str, object]:
    """By plugin name, as JSON, the values in force of what decides which bytes may leave."""
    values = {_NAMES[name].option: getattr(settings, name) for name in _CAPTURE}
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
        if settings.origins.get(_BY_OPTION[option], _DEFAULT).source not in seen_later
    }


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of `config show`. `value` is JSON; of the API key, `set` or `not set`."""

    name: str
    value: object
    origin: str
    unit: str


def shown(settings: Settings) -> list[Shown]:
    values = {name: getattr(settings, name) for name in _NAMES} | {
        "api_key": "set" if settings.api_key else "not set",
        "redact_patterns": list(settings.redact_patterns),
        "spool_directory": str(settings.spool_directory),
    }
    return [
        Shown(_NAMES[name].option, value, settings.origin(name), _NAMES[name].unit) for name, value in values.items()
    ]

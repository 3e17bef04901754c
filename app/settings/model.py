"""Settings as values: what each must be, its default, and where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from platformdirs import user_data_path
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, Strict, TypeAdapter
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.errors import UsageError
from app.runtime.filesystem import default_spool
from app.runtime.url import EndpointError, normalise
from app.settings.names import NAMES

PROGRAM = "opencode-helicone"
_HELD_SHOWN = 3


class SettingsError(UsageError):
    """Settings that cannot be used. One line; `problems` has them one by one, each naming setting, value and origin."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))

    @property
    def for_logs(self) -> str:
        """The same without values: somebody may have written the very secret down as a pattern."""
        return "; ".join(re.sub(r"^(\w+) = .* from ", r"\1 from ", one, flags=re.DOTALL) for one in self.problems)


Source: TypeAlias = Literal[
    "command line",
    "environment",
    "folder .env",
    ".env",
    "project",
    "named",
    "user",
    "recorded",
    "config file",
    "system file",
    "intake",
    "default",
]
"""`folder .env`: of the folder where a command was typed; `.env`: of the user's configuration folder. `project`: files
of the project, or what OpenCode handed to the plugin there; `named`: OpenCode's files that its environment names;
`user`: those that it finds by itself everywhere; `recorded`: by a hook; `system file`: the administrator's, for all
users; `intake`: said by the company's intake that the key leads to."""
SEEN_LATER: tuple[Source, ...] = ("default", "system file", "config file", ".env", "user")
"""Sources that a later process finds by itself, whatever its environment and its directory are."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: the kind of source, and words for a person, e.g. `environment HELICONE_ENDPOINT`."""

    source: Source
    text: str


DEFAULT = Origin("default", "default")


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong in OpenCode's files. Without any value: somebody may have written the very secret there."""

    text: str
    """One line, with the file."""
    short: str
    """One line for the ledger and for logs: without the folders of the file."""
    holds: bool
    """It may have been meant to withhold something: nothing is captured or sent until it is right."""


@dataclass(frozen=True, slots=True)
class Given:
    value: object = field(repr=False)
    origin: Origin


Layer: TypeAlias = dict[str, Given]

HELICONE: Literal["helicone"] = "helicone"
"""The destination that needs no table, and its kind."""
Preset: TypeAlias = Literal["phoenix", "mlflow", "none"]
"""Which receiver takes OTLP traces: what it can be asked, and what it does with what it has already."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What an intake has said to this machine."""

    origin: Origin
    silence: str
    """Why nothing may be delivered to it: it has said nothing yet, or what cannot be used; '' where something may."""
    withheld: Layer = field(default_factory=dict, repr=False)
    """What it does not take, beside what none gets."""


@dataclass(frozen=True, slots=True)
class DestinationSettings:
    """One table `[destinations.NAME]`."""

    name: str
    kind: Literal["helicone", "otlp"]
    endpoint: str
    """'' of Helicone, whose own settings say it."""
    origin: Origin
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Their values are secrets."""
    preset: Preset = "none"
    project: str = ""
    withheld: Layer = field(default_factory=dict, repr=False)
    """What this destination does not get, beside what none gets."""
    unusable: str = ""
    """Why it cannot be used in this process; '' where it can."""

    def withholding(self, withheld: Layer) -> DestinationSettings:
        return replace(self, withheld=withheld)


# What a value must be. The words go into the error as they are; none of them quotes the value.


def _folder(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value) or re.search(r"[\x00-\x1f\x7f]", str(value)):
        raise ValueError("it should be the path of a folder")
    return value


def _file(value: object) -> object:
    try:
        path = Path(str(value)).expanduser() if isinstance(_folder(value), str | Path) else Path()
    except (RuntimeError, ValueError):  # `~name` of nobody
        path = Path()
    if not path.is_absolute():
        raise ValueError("it should be the absolute path of a file")
    return path


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
_File: TypeAlias = Annotated[Path, BeforeValidator(_file)]
_PathPrefix: TypeAlias = Annotated[str, Field(strict=True, max_length=200), AfterValidator(_path_prefix)]
_Person: TypeAlias = Annotated[str, Field(strict=True, max_length=200), AfterValidator(_person)]
_Pattern: TypeAlias = Annotated[str, Field(max_length=10_000)]
_Patterns: TypeAlias = Annotated[tuple[_Pattern, ...], Field(max_length=1000), BeforeValidator(_patterns)]
_Key: TypeAlias = Annotated[SecretStr, AfterValidator(_key)]
_Url: TypeAlias = Annotated[str, Field(strict=True, max_length=2000), AfterValidator(_url)]


def standard_folder(find: Callable[[], Path]) -> Path:
    """A folder that the system names for this user. Raises SettingsError where it knows no home folder of theirs."""
    try:
        found = find()
    except RuntimeError:
        found = Path()
    if not found.is_absolute():  # "~/..." with older versions of platformdirs
        raise SettingsError(["HOME is not set, and the system knows no home folder of this user: set HOME"])
    return found


def _default_spool() -> Path:
    return default_spool(standard_folder(lambda: user_data_path(PROGRAM, appauthor=False)))


class Settings(BaseSettings):
    """Every setting. `load` makes it from the sources; made directly, it holds what it is given and defaults."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enable: _Truth = True
    """False: nothing is captured and nothing is sent."""
    api_key: _Key | None = None
    """None: jobs wait."""
    api_key_file: _File | None = None
    """Where `load` has read the key."""
    endpoint: _Url = "https://api.worker.helicone.ai"
    """Without a slash at its end."""
    allow_http: _Truth = False
    """True: an endpoint on another machine may be http://, where everybody on the way reads along."""
    ca_file: _File | None = None
    """Certificates that are trusted beside Mozilla's list."""
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
    dashboard_url: _Url | None = None
    """Where a browser finds a self-hosted Helicone; None: nothing leads to its pages."""

    destination: str = HELICONE
    """Towards which destination these settings are; see `destinations.towards`."""
    kind: str = HELICONE
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    preset: Preset | Literal["intake"] = "none"
    project: str = ""
    heard: Any = Field(default=None, repr=False)
    """As `Heard`, where Helicone's key leads to an intake; None elsewhere."""
    common: Any = Field(default=None, repr=False)
    """The settings without what this destination alone does not get; None where that is nothing."""
    destinations: dict[str, Any] = Field(default_factory=dict, repr=False)
    """By name, as `DestinationSettings`: those that a table names."""

    origins: dict[str, Origin] = Field(default_factory=dict, repr=False)
    """By field. A field that is not in it has its default."""
    folder_limits: dict[str, Any] = Field(default_factory=dict, repr=False)
    """By field, as `Given`: limits of the project's own files, for its jobs alone. The fields are without them."""
    unseen: dict[str, Any] = Field(default_factory=dict, repr=False)
    """By field, as `Given`: what a later process could not find by itself."""
    complaints: tuple[Complaint, ...] = Field(default=(), repr=False)
    """About OpenCode's files."""

    @property
    def takes_over(self) -> bool:
        """Whether the key is the user's own: then jobs that wait without one, or for one that is refused, go to it."""
        return self.kind == HELICONE and self.origins.get("api_key", DEFAULT).source != "folder .env"

    @property
    def credential(self) -> str:
        """What, beside the endpoint, tells the destination from others: a secret. '' where its jobs wait for one."""
        if self.kind == HELICONE:
            return self.api_key.get_secret_value() if self.api_key else ""
        headers = sorted((name.lower(), text) for name, text in self.headers.items())
        return json.dumps([self.kind, self.project, headers])

    @property
    def silence(self) -> str:
        """Why nothing may be delivered yet, though it is captured; '' where something may."""
        return self.heard.silence if self.heard is not None else ""

    @property
    def held(self) -> tuple[str, ...]:
        """Why nothing may be captured or sent: the files of OpenCode may withhold more than could be read of them."""
        return tuple(one.short for one in self.complaints if one.holds)

    @property
    def held_because(self) -> str:
        """The same as one bounded line; '' where nothing is held."""
        more = len(self.held) - _HELD_SHOWN
        return "; ".join([*self.held[:_HELD_SHOWN], *([f"and {more} more"] if more > 0 else [])])

    def origin(self, name: str) -> str:
        """Where the value of the field `name` came from, e.g. `environment HELICONE_ENDPOINT`, `default`."""
        NAMES[name]  # a name that is none is a bug, not a default
        return self.origins.get(name, DEFAULT).text

    def how_to_undo(self, name: str) -> str:
        """What to type so that the variable which says the field `name` counts no more; '' where none says it."""
        given = self.origins.get(name, DEFAULT)
        if given.source != "environment":
            return ""
        return f"unset {given.text.rpartition(' ')[2]} (or set it right where OpenCode is started)"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - given with each call
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - reads os.environ
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - fills ${…} from os.environ: not used
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - nobody asked for it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(Settings.model_fields[name].rebuild_annotation())


def checked(name: str, value: object) -> object:
    """The value of one field as the settings hold it. Raises pydantic's ValidationError."""
    checked: object = _adapter(name).validate_python(value)
    return checked

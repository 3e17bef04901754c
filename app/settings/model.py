"""The settings as values: what each must be, its default, and where it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from platformdirs import user_data_path
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, Strict
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.endpoint import EndpointError, normalise
from app.place import default_spool
from app.settings.names import NAMES

PROGRAM = "opencode-helicone"


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


DEFAULT = Origin("default", "default")


@dataclass(frozen=True, slots=True)
class Given:
    value: object = field(repr=False)
    origin: Origin


Layer: TypeAlias = dict[str, Given]


class LayerSource(PydanticBaseSettingsSource):
    """One layer, in the form that pydantic-settings merges."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # only sources that go field by field are asked

    def __call__(self) -> dict[str, Any]:
        return {name: given.value for name, given in self._layer.items()}


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
        NAMES[name]  # a name that is none is a bug, not a default
        return self.origins.get(name, DEFAULT).text

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
        return tuple(LayerSource(settings_cls, layer) for layer in layers)

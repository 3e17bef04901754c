"""Reads OpenCode's configuration, and finds where it configures our plugin, because OpenCode does not hand it over.

Its list of plugins is unique by file, and the file that it finds by itself in `plugin/` wins over an entry with
options; a top-level `plugins` block, which the plugin before this one asked for, it drops. Each of these counts here:

    "plugin" or "plugins": ["opencode-helicone@1", "./opencode-helicone.js", ["file:///…/opencode-helicone.js", {…}]]
                           [{"package": "opencode-helicone", "options": {…}}]
    "plugins": {"opencode-helicone-async-telemetry": {…}}

What is written there is judged by the settings; here only whether it can be read at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from app.sources.opencode.config_files import Files, RelativeError, Source, UnreadableError, filled_in, in_force, text
from app.sources.opencode.install import FILE_NAME, MARKER
from app.sources.opencode.jsonc import NotJsonError, Parsed, parse
from app.sources.opencode.jsonc import Path as Place

if TYPE_CHECKING:
    from app.transcript.model import Json  # 12 ms

PLUGIN = FILE_NAME.removesuffix(".js")
PREDECESSOR = "opencode-helicone-async-telemetry"
PREDECESSORS_SPOOL = Path(".opencode") / "helicone-spool"
"""Where it kept what it had not sent, in the folder of a project, unless it was told otherwise."""
_KEYS = ("plugin", "plugins")
_PACKAGE = re.compile(rf"(npm:)?({PLUGIN}|{PREDECESSOR})(@.*)?", re.DOTALL)
_ENDINGS = ("", ".js", ".mjs", ".cjs", ".ts", ".mts", ".cts")
_OF_A_FOLDER = (FILE_NAME, *(f"{stem}{ending}" for stem in ("index", "server") for ending in _ENDINGS[1:]))
_SPEC_MAX = 4096
"""No path is longer."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One place where our plugin is configured."""

    options: Mapping[str, Json]
    """As they stand there, of whatever names and types."""
    origin: str
    """A file's path, or the name of the variable that holds the configuration."""
    lines: Mapping[str, int]
    """Of each option's key in that text, from 1."""
    line: int
    """Where it begins."""
    is_project: bool
    """It stands in a project's files: neither in the user's own nor the system's, and no variable points there."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What cannot be used. Nothing of the text is told but where it stands."""

    origin: str
    line: int | None
    what: str
    may_tighten: bool
    """It may have been meant to withhold something: nothing may be captured until it is right."""

    def __str__(self) -> str:
        place = self.origin if self.line is None else f"{self.origin} line {self.line}"
        return f"{place}: {self.what}"


@dataclass(frozen=True, slots=True)
class Document:
    """One whole configuration, variables and files filled in. May hold keys of providers and of MCP servers."""

    value: Mapping[str, Json]
    origin: str


@dataclass(frozen=True, slots=True)
class Configuration:
    entries: tuple[Entry, ...]
    """Lowest precedence first, as OpenCode merges."""
    problems: tuple[Problem, ...]
    documents: tuple[Document, ...]
    """Every configuration that can be read, in the same order."""
    basis: object
    """Equal for as long as nothing that was read has changed, and nothing has appeared that would have been read."""


def read(environ: Mapping[str, str], directory: str | None) -> Configuration:
    """Read what is in force in a directory; without one, what counts everywhere. Never raises for what a file holds."""
    files = Files()
    found: list[Entry | Problem] = []
    documents: list[Document] = []
    for source in in_force(environ, directory):
        parsed = _parsed(source, environ, files)
        if isinstance(parsed, Problem):
            found.append(parsed)
        elif parsed is not None and isinstance(parsed.value, dict):
            documents.append(Document(parsed.value, source.origin))
            found += _Ours(source, parsed, parsed.value, files).find()
    return Configuration(
        entries=tuple(one for one in found if isinstance(one, Entry)),
        problems=tuple(one for one in found if isinstance(one, Problem)),
        documents=tuple(documents),
        basis=tuple(files.seen.items()),
    )


def _parsed(source: Source, environ: Mapping[str, str], files: Files) -> Parsed | Problem | None:
    """A whole configuration; None where there is none."""
    raw: str | None = None
    line: int | None
    try:
        raw = text(source, environ, files)
        if not raw:
            return None  # OpenCode takes an empty file for none
        parsed = parse(filled_in(raw, source, environ, files))
    except RelativeError:
        return None  # it counts where the directory is known
    except NotJsonError as error:
        line, what = error.line, "it is not JSON"
    except UnreadableError as error:
        line, what = error.line, error.what
    else:
        if isinstance(parsed.value, dict):
            return parsed
        line, what = 1, "it is JSON, but no object"
    return Problem(source.origin, line, what, raw is None or "helicone" in raw.lower())


@dataclass(frozen=True, slots=True)
class _Ours:
    """Finds in one configuration what is about our plugin."""

    source: Source
    parsed: Parsed
    top: Mapping[str, Json]
    files: Files

    def find(self) -> Iterator[Entry | Problem]:
        for key in _KEYS:
            value = self.top.get(key)
            if (key,) in self.parsed.overruled:
                lost = self.parsed.overruled[key,]
                yield self._problem((key,), f"{key} stands here again", may_tighten=self._is_about_us(lost))
            match value:
                case None:
                    pass
                case list():
                    for position, element in enumerate(value):
                        yield from self._element((key, position), element)
                case dict() if key == "plugins":
                    for name in filter(self._is_ours, value):
                        yield from self._options((key, name), value[name], (key, name))
                case _:
                    yield self._problem((key,), f"{key} is not a list", may_tighten=self._is_about_us(value))

    def _element(self, place: Place, element: Json) -> Iterator[Entry | Problem]:
        """Of a list of plugins."""
        match element:
            case str(name) | [str(name)]:
                if self._is_ours(name):
                    yield self._entry({}, place, place)
            case [str(name), options]:
                if self._is_ours(name):
                    yield from self._options((*place, 1), options, place)
            case {"package": str(name), "options": options, **more} if not more:
                if self._is_ours(name):
                    yield from self._options((*place, "options"), options, place)
            case {"package": str(name), **more} if not more:
                if self._is_ours(name):
                    yield self._entry({}, place, place)
            case _ if self._is_about_us(element) or self._follows_us(place):
                yield self._problem(place, "OpenCode knows no such form of a plugin with options")

    def _follows_us(self, place: Place) -> bool:
        """Whether it comes directly after our name: options whose brackets were forgotten."""
        before = self.top[str(place[0])][int(place[1]) - 1] if place[1] else None  # type: ignore[index]
        return isinstance(before, str) and self._is_ours(before)

    def _options(self, place: Place, options: Json, whole: Place) -> Iterator[Entry | Problem]:
        """Options at `place`, of an entry that is the `whole`."""
        for path in self.parsed.overruled:
            if path[: len(whole)] == whole:
                yield self._problem(path, f"an option of {PLUGIN}, or all of them, stand here again")
        if isinstance(options, dict):
            yield self._entry(options, place, whole)
        else:
            yield self._problem(place, f"the options of {PLUGIN} are not an object")

    def _entry(self, options: Mapping[str, Json], place: Place, whole: Place) -> Entry:
        lines = {name: self.parsed.lines[*place, name] for name in options}
        return Entry(options, self.source.origin, lines, self.parsed.lines[whole], self.source.is_project)

    def _problem(self, place: Place, what: str, *, may_tighten: bool = True) -> Problem:
        return Problem(self.source.origin, self.parsed.lines[place], what, may_tighten)

    def _is_about_us(self, value: Json) -> bool:
        return any(map(self._is_ours, _strings(value)))

    def _is_ours(self, spec: str) -> bool:
        """Whether what is named there, a package or a path, is our plugin or the one before it."""
        if _looks_like_us(spec):
            return True
        path = _file_of(spec, self.source.folder)
        if path is None:
            return False
        candidates = [path / name for name in _OF_A_FOLDER] if os.path.isdir(path) else [path]  # noqa: PTH112 - Path's raises
        return any(self.files.starts_with(one, MARKER.encode()) for one in candidates)


def _looks_like_us(spec: str) -> bool:
    """By its name alone. A folder on the way there says nothing."""
    name = spec.strip()
    if name.startswith("@"):
        return False  # a package of somebody's own
    last = re.split(r"[/\\]", unquote(name).rstrip("/\\"))[-1]
    return _PACKAGE.fullmatch(name) is not None or last in {f"{PLUGIN}{ending}" for ending in _ENDINGS}


def _file_of(spec: str, folder: Path | None) -> Path | None:
    """The file or folder that an entry names; None for a package."""
    if len(spec) > _SPEC_MAX:
        return None
    if spec.startswith("file://"):
        return Path(unquote(spec.removeprefix("file://")))
    if spec.startswith("/"):
        return Path(spec)
    return folder / spec if spec.startswith(".") and folder is not None else None


def _strings(value: Json) -> Iterator[str]:
    """All in it, keys too."""
    match value:
        case str():
            yield value
        case list():
            for element in value:
                yield from _strings(element)
        case dict():
            for key, element in value.items():
                yield key
                yield from _strings(element)

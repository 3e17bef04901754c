"""Finds the configurations that OpenCode merges for a directory, in its order, and reads their texts.

    ~/.config/opencode/{config.json,opencode.json,opencode.jsonc}       or below $XDG_CONFIG_HOME
    $OPENCODE_CONFIG
    opencode.json, opencode.jsonc       from the repository's root down to the directory
    .opencode/opencode.json[c]          from the directory up to the root, then of the home directory
    $OPENCODE_CONFIG_DIR/opencode.json[c]
    $OPENCODE_CONFIG_CONTENT            the text itself
    /etc/opencode/opencode.json[c]      the system's

Read in the source of OpenCode 1.14.41 and 1.18.33, and compared with `opencode debug config`. What it fetches (an
organisation's configuration, `.well-known/opencode` of a host that one signed in to) and macOS's managed preferences
are not read here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from app.errors import AppError
from app.sources.opencode.folders import home

FILE_BYTES_MAX = 1_000_000
"""Of a configuration, and of each file whose text it takes in."""
FILLED_CHARACTERS_MAX = 4 * FILE_BYTES_MAX
"""Of all values and texts that one configuration takes in: it may name the same file any number of times."""
BOTH = ("opencode.json", "opencode.jsonc")
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
_POINTER = "gitdir:"
_PATH_BYTES_MAX = 8192
_BLANK = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
"""What JavaScript's `trim` takes away."""


@dataclass(frozen=True, slots=True)
class Source:
    """A text of configuration, whether or not it is there."""

    origin: str
    """Its path, or the name of the variable that holds it."""
    path: Path | None
    """None: the variable holds it."""
    folder: Path | None
    """Against which relative paths in it are taken; None where nobody knows."""
    is_project: bool


class UnreadableError(AppError):
    """A text that cannot be had. Says why, without anything of it."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.line = line


class RelativeError(AppError):
    """A text names a file relative to a directory that is not known here."""


class Files:
    """Reads files, and keeps what each of them held: equal `seen` means that nothing changed in between."""

    def __init__(self) -> None:
        self.seen: dict[str, bytes | str | None] = {}
        """By path: bytes, or why they cannot be had; None: not there. By `{env:NAME}`: the variable's value."""

    def read(self, path: Path, bytes_max: int = FILE_BYTES_MAX) -> bytes | None:
        """None: not there. Raises UnreadableError."""
        data = self._look(path, bytes_max + 1)
        if data is not None and len(data) > bytes_max:
            raise UnreadableError(f"it is larger than {bytes_max} bytes")
        return data

    def starts_with(self, path: Path, head: bytes) -> bool:
        try:
            return self._look(path, len(head)) == head
        except UnreadableError:
            return False

    def _look(self, path: Path, size: int) -> bytes | None:
        try:
            data = _bytes(path, size)
        except (OSError, ValueError) as error:  # ValueError: no file can have such a name
            if isinstance(error, ValueError) or error.errno in _ABSENT:
                self.seen[str(path)] = None
                return None
            reason = error.strerror or "no reason given"
            self.seen[str(path)] = reason
            raise UnreadableError(f"it cannot be read: {reason}") from None
        self.seen[str(path)] = data
        return data


def _bytes(path: Path, size: int) -> bytes:
    # A pipe would be waited for, and a device has no end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(size)


_VARIABLES = (
    "HOME", "XDG_CONFIG_HOME", "OPENCODE_CONFIG", "OPENCODE_CONFIG_DIR", "OPENCODE_CONFIG_CONTENT",
    "OPENCODE_DISABLE_PROJECT_CONFIG", "OPENCODE_TEST_MANAGED_CONFIG_DIR",
)  # fmt: skip
"""What decides which texts there are."""


def in_force(environ: Mapping[str, str], directory: str | None) -> Iterable[Source]:
    """Lowest precedence first. Without a directory only what counts in all of them."""
    told = tuple((name, environ[name]) for name in _VARIABLES if name in environ)
    return _everywhere(told) if directory is None else _sources(dict(told), _real(directory))


@lru_cache(maxsize=4)
def _everywhere(told: tuple[tuple[str, str], ...]) -> tuple[Source, ...]:
    """Asked before each POST."""
    return tuple(_sources(dict(told), None))


def _sources(environ: Mapping[str, str], here: Path | None) -> Iterator[Source]:
    own = Path(environ.get("XDG_CONFIG_HOME") or home(environ) / ".config") / "opencode"
    named, folder = (_path(environ.get(name), here) for name in ("OPENCODE_CONFIG", "OPENCODE_CONFIG_DIR"))
    is_closed = environ.get("OPENCODE_DISABLE_PROJECT_CONFIG", "").lower() in {"true", "1"}
    above = [] if here is None or is_closed else list(_up_to_root(here))

    yield from (_file(own / name) for name in ("config.json", *BOTH))
    if named is not None:
        yield _file(named)
    yield from (_file(place / name, is_project=True) for place in reversed(above) for name in BOTH)
    folders = {place / ".opencode": True for place in above} | {home(environ) / ".opencode": False}
    folders = {own: False, **folders}
    if folder is not None:
        folders.setdefault(folder, False)
    for place, is_project in folders.items():
        if place.name.endswith(".opencode") or place == folder:
            yield from (_file(place / name, is_project=is_project) for name in BOTH)
    if environ.get("OPENCODE_CONFIG_CONTENT"):
        yield Source("OPENCODE_CONFIG_CONTENT", None, here, is_project=False)
    yield from (_file(_system(environ) / name) for name in BOTH)


def text(source: Source, environ: Mapping[str, str], files: Files) -> str | None:
    """Text of a file as it stands, None where there is none. Raises UnreadableError."""
    if source.path is None:
        content = environ["OPENCODE_CONFIG_CONTENT"]
        files.seen["{env:OPENCODE_CONFIG_CONTENT}"] = content
        return _valid(content)
    data = files.read(source.path)
    return data.decode("utf-8", "replace").removeprefix("\ufeff") if data else None


def filled_in(raw: str, source: Source, environ: Mapping[str, str], files: Files) -> str:
    """Fill in `{env:NAME}` and `{file:PATH}` as OpenCode does, anywhere in the text.

    A variable's value stands there as it is; a file's as the inside of a JSON string, and is not looked through again.
    Raises UnreadableError, RelativeError.
    """
    left = FILLED_CHARACTERS_MAX

    def taken_in(value: str) -> str:
        nonlocal left
        left -= len(value)
        if left < 0:
            raise UnreadableError(f"it takes in more than {FILLED_CHARACTERS_MAX} characters")
        return value

    def variable(found: re.Match[str]) -> str:
        value = environ.get(found[1], "")
        files.seen[found[0]] = value
        return taken_in(_valid(value))

    full = re.sub(r"\{env:([^}]+)\}", variable, raw)

    def file(found: re.Match[str]) -> str:
        line_start = full.rfind("\n", 0, found.start()) + 1
        if full[line_start : found.start()].lstrip(_BLANK).startswith("//"):
            return found[0]
        try:
            content = _content(found[1], source.folder, environ, files)
        except UnreadableError as error:
            line = full.count("\n", 0, found.start()) + 1
            raise UnreadableError(f"a {{file:…}} in it has no text to give: {error.what}", line) from None
        return taken_in(json.dumps(content, ensure_ascii=False)[1:-1])

    return re.sub(r"\{file:([^}]+)\}", file, full)


def _content(name: str, folder: Path | None, environ: Mapping[str, str], files: Files) -> str:
    if name.startswith("~/"):
        name = str(home(environ) / name[2:])
    path = _path(name, folder)
    if path is None:
        raise RelativeError
    data = files.read(path)
    if data is None:
        raise UnreadableError("there is no such file")
    return data.decode("utf-8", "replace").strip(_BLANK)


def _valid(value: str) -> str:
    """Bytes of a variable that are not UTF-8 come to OpenCode as this sign."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _path(name: str | None, folder: Path | None) -> Path | None:
    """Lexically, as OpenCode resolves it."""
    if not name or (folder is None and not name.startswith("/")):
        return None
    return Path(os.path.normpath((folder or Path("/")) / name))


def _real(directory: str | None) -> Path | None:
    """OpenCode follows symbolic links before it looks around."""
    if not directory or not directory.startswith("/"):
        return None
    try:
        return Path(os.path.realpath(directory))
    except ValueError:  # no directory can have such a name
        return None


def _up_to_root(directory: Path) -> Iterator[Path]:
    """The directory and those above it, up to the root of its repository; outside of one up to `/`."""
    for place in (directory, *directory.parents):
        yield place
        if _is_root(place):
            return


def _is_root(place: Path) -> bool:
    """Whether Git takes it for a work tree; from an empty `.git` it looks further up."""
    git = place / ".git"
    try:
        if not git.is_file():
            return all((git / name).exists() for name in ("HEAD", "objects", "refs"))
        with git.open("rb") as file:  # of a linked work tree, or of a submodule
            pointer = os.fsdecode(file.read(_PATH_BYTES_MAX))
        return pointer.startswith(_POINTER) and (place / pointer.removeprefix(_POINTER).strip()).exists()
    except (OSError, ValueError):
        return False


def _system(environ: Mapping[str, str]) -> Path:
    standard = "/Library/Application Support/opencode" if sys.platform == "darwin" else "/etc/opencode"
    return Path(environ.get("OPENCODE_TEST_MANAGED_CONFIG_DIR") or standard)


def _file(path: Path, *, is_project: bool = False) -> Source:
    return Source(str(path), path, path.parent, is_project)

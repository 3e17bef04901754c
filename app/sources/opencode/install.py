"""Puts the plugin where OpenCode loads plugins from, and takes it away again.

    everywhere    <OpenCode's config directory>/plugin/opencode-helicone.js    starts this installation's Python
    one project   <project>/.opencode/plugin/opencode-helicone.js              finds `opencode-helicone` by PATH

The project's file is made to be committed: it holds no absolute path. OpenCode 1.18.33 loads `plugin/*.js` and
`plugins/*.js` of `~/.config/opencode`, of `$OPENCODE_CONFIG_DIR` and of `.opencode`; all six were tried.

What the file exports is an object, or, for older versions, a function with the same names on it:

    OpenCode       function    object
    1.0 - 1.2.4    works       ends every run with exit code 1
    1.2.5 - 1.3    works       is passed over
    1.14 - 1.18    works       works
    2              refused     works
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from app.errors import AppError
from app.runtime.filesystem import replace_file
from app.sources.opencode.program import Program, Version

MARKER = "// opencode-helicone plugin"
"""How the head line of our file begins. A file without it is somebody else's."""
FILE_NAME = "opencode-helicone.js"
SOURCE = Path(__file__).parent / "plugin" / "helicone.js"
COMMAND_BY_PATH = ("opencode-helicone", "hook")
Flavour: TypeAlias = Literal["function", "object"]
NEEDS_FUNCTION_BELOW: Version = (1, 14, 0)
"""There is nothing between 1.3 and 1.14."""
NEEDS_OBJECT_FROM: Version = (2, 0, 0)
FILE_MODE = 0o644
FOLDER_MODE = 0o755


class InstallError(AppError):
    """The file cannot be put there or taken away. The message names the path and what to do."""


@dataclass(frozen=True, slots=True)
class Global:
    """Every project of this user."""

    config_directory: Path
    """OpenCode's: see `config_directory`."""


@dataclass(frozen=True, slots=True)
class Project:
    directory: Path


@dataclass(frozen=True, slots=True)
class Installed:
    path: Path
    changed: bool
    """False when everything was already as asked for. In a dry run: whether it would change."""


def config_directory(environ: Mapping[str, str]) -> Path:
    """OpenCode's directory for a user's configuration, on Linux and macOS alike. Raises InstallError."""
    for name, below in (("OPENCODE_CONFIG_DIR", "."), ("XDG_CONFIG_HOME", "opencode"), ("HOME", ".config/opencode")):
        value = environ.get(name)
        if not value:
            continue
        if not Path(value).is_absolute():
            raise InstallError(f"{name} is {value!r}: set it to an absolute path")
        return Path(value) / below
    raise InstallError("HOME is not set: set it, or OPENCODE_CONFIG_DIR, to an absolute path")


def flavour_for(programs: Iterable[Program]) -> Flavour:
    """What these can all load, as far as one file can be that."""
    known = [program.version for program in programs if program.version]
    return "function" if any(version < NEEDS_FUNCTION_BELOW for version in known) else "object"


def fits(flavour: Flavour, version: Version) -> bool:
    return version < NEEDS_OBJECT_FROM if flavour == "function" else version >= NEEDS_FUNCTION_BELOW


def install(scope: Global | Project, *, python: str, flavour: Flavour = "object", dry_run: bool = False) -> Installed:
    """Write the plugin, for `python` (absolute; not used for a project). Raises InstallError and OSError."""
    path = _path(scope)
    if isinstance(scope, Global) and not Path(python).is_absolute():
        raise InstallError(f"the Python to start is {python!r}: an absolute path is needed")
    if isinstance(scope, Project) and not scope.directory.is_dir():
        raise InstallError(f"{scope.directory} is not a directory: name the project's")
    content = _content(scope, python, flavour)
    changed = _own_content(path) != content
    for one in (path.parent, path):
        weakness = _weakness(one)
        if weakness is not None:
            raise InstallError(f"{weakness}, then install again")
    if changed and not dry_run:
        _write(path, content)
    return Installed(path, changed)


def _content(scope: Global | Project, python: str, flavour: Flavour) -> str:
    command = (python, "-I", "-m", "app", "hook") if isinstance(scope, Global) else COMMAND_BY_PATH
    return render(SOURCE.read_text(encoding="utf-8"), command, flavour)


@dataclass(frozen=True, slots=True)
class Found:
    """A file of ours that is there."""

    path: Path
    scope: Global | Project
    flavour: Flavour | None
    """None where it is not what this installation writes: of another one, of another version, or changed since."""
    written_ms: int


def find(environ: Mapping[str, str], directory: Path, *, python: str) -> list[Found]:
    """The plugin of this user, and that of the project in `directory`. Raises InstallError and OSError."""
    found = []
    for scope in _scopes(environ, directory):
        path = _path(scope)
        content = _own_content(path)
        if content is not None:
            written = {_content(scope, python, flavour): flavour for flavour in get_args(Flavour)}
            found.append(Found(path, scope, written.get(content), path.stat().st_mtime_ns // 1_000_000))
    return found


def findings(environ: Mapping[str, str], directory: Path) -> list[str]:
    """What is wrong with the plugins of this user and of the project in `directory`, one sentence each.

    Whoever can write to one of these runs code in this user's OpenCode. Changes nothing.
    """
    try:
        paths = [_path(scope) for scope in _scopes(environ, directory)]
    except InstallError as error:
        return [str(error)]
    found = (_weakness(one) for path in paths if path.exists() for one in (path.parent, path))
    return [weakness for weakness in found if weakness is not None]


def _scopes(environ: Mapping[str, str], directory: Path) -> tuple[Global | Project, ...]:
    return Global(config_directory(environ)), Project(directory)


def _weakness(path: Path) -> str | None:
    """Who else could write to it, and what to do. Root could anyway."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if status.st_uid not in {0, os.geteuid()}:
        return f"{path} belongs to another user (uid {status.st_uid}): move it away"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return f"{path} can be written by other users (mode {mode}): chmod go-w {path}"
    return None


def uninstall(scope: Global | Project, *, dry_run: bool = False) -> Installed:
    """Remove the plugin if it is there. Raises InstallError and OSError."""
    path = _path(scope)
    changed = _own_content(path) is not None
    if changed and not dry_run:
        path.unlink()
        _sync_directory(path.parent)
    return Installed(path, changed)


def render(source: str, command: tuple[str, ...], flavour: Flavour = "object") -> str:
    """The plugin's text with the command that starts the hook, with what it exports, and with the name of its code.

    By that name a copy that OpenCode loads into a running process knows whether an older one is there to be replaced.
    """
    code = hashlib.sha256(source.encode()).hexdigest()[:12]
    line = f"const INSTALLED = {json.dumps({'command': command, 'flavour': flavour, 'code': code})}"
    content, count = re.subn(r"^const INSTALLED = .*$", lambda _: line, source, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"the plugin has {count} lines for what is installed, not 1")
    return content


def _path(scope: Global | Project) -> Path:
    if isinstance(scope, Global):
        return scope.config_directory / "plugin" / FILE_NAME
    folder = scope.directory / ".opencode" / "plugin"
    for part in (folder.parent, folder):
        # A repository can bring these links along: following one would write outside of it.
        if part.is_symlink():
            raise InstallError(f"{part} is a symbolic link: replace it by a directory")
    return folder / FILE_NAME


def _own_content(path: Path) -> str | None:
    """What our file holds, None when there is none. Raises InstallError for anything that is not ours."""
    if path.is_symlink():
        raise InstallError(f"{path} is a symbolic link: remove it first")
    try:
        content = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InstallError(f"{path} is a directory: remove it first") from None
    if not content.startswith(MARKER):
        raise InstallError(f"{path} was not written by opencode-helicone: move it away first")
    return content


def _write(path: Path, content: str) -> None:
    """All or nothing: OpenCode may start at any moment and must never load half a file."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.exists():
        path.parent.mkdir(mode=FOLDER_MODE)
    replace_file(path, content.encode(), FILE_MODE)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

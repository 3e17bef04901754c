"""Which sources a process takes its settings from: those of a command that a person typed, or fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.settings import (
    Plugin,
    Recorded,
    Settings,
    config_file_in,
    config_folder,
    dotenv_of_command,
    dotenv_unattended,
    load,
    standard_folder,
)


@dataclass(frozen=True, slots=True)
class Sources:
    """All but the plugin's options, which differ from folder to folder.

    Which files there are is looked up at each load: one that is written while a process runs counts from then on.
    """

    environ: Mapping[str, str]
    base: Path
    own: Path
    """The user's own folder of `config.toml` and `.env`."""
    cwd: Path | None = None
    """Where a person typed a command: its `.env` counts."""
    env_file: Path | None = None
    command_line: Mapping[str, object] = field(default_factory=dict)

    def load(self, plugin: Plugin | Recorded | None = None) -> Settings:
        """Raises SettingsError."""
        return load(
            environ=self.environ,
            base=self.base,
            command_line=self.command_line,
            dotenv=self._dotenv(),
            plugin=plugin,
            config_file=config_file_in(self.own),
        )

    def texts(self) -> tuple[tuple[Path, bytes | None], ...]:
        """Each file and what it holds now (None: it cannot be read): equal for as long as nothing in them changes."""
        files = [*self._dotenv(), *filter(None, [config_file_in(self.own)])]
        return tuple((path, _text(path)) for path in files)

    def _dotenv(self) -> tuple[Path, ...]:
        if self.cwd is None:
            return dotenv_unattended(self.own)
        return dotenv_of_command(self.cwd, self.own, self.env_file)


def _text(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def typed(
    environ: Mapping[str, str],
    cwd: Path,
    *,
    env_file: Path | None = None,
    command_line: Mapping[str, object] | None = None,
) -> Sources:
    """For a command that a person typed in `cwd`: its `.env` counts. Raises SettingsError."""
    return Sources(environ, cwd, standard_folder(config_folder), cwd, env_file, command_line or {})


def unattended(environ: Mapping[str, str]) -> Sources:
    """For the hook and the worker that it starts: they run in projects of others, whose `.env` is not ours to read.

    Raises SettingsError.
    """
    return Sources(environ, Path("/"), standard_folder(config_folder))

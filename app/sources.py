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
)


@dataclass(frozen=True, slots=True)
class Sources:
    """All but the plugin's options, which differ from folder to folder."""

    environ: Mapping[str, str]
    base: Path
    dotenv: tuple[Path, ...]
    config_file: Path | None
    command_line: Mapping[str, object] = field(default_factory=dict)

    def load(self, plugin: Plugin | Recorded | None = None) -> Settings:
        """Raises SettingsError."""
        return load(
            environ=self.environ,
            base=self.base,
            command_line=self.command_line,
            dotenv=self.dotenv,
            plugin=plugin,
            config_file=self.config_file,
        )


def typed(
    environ: Mapping[str, str],
    cwd: Path,
    *,
    env_file: Path | None = None,
    command_line: Mapping[str, object] | None = None,
) -> Sources:
    """For a command that a person typed in `cwd`: its `.env` counts."""
    own = config_folder()
    return Sources(environ, cwd, dotenv_of_command(cwd, own, env_file), config_file_in(own), command_line or {})


def unattended(environ: Mapping[str, str]) -> Sources:
    """For the hook and the worker that it starts: they run in projects of others, whose `.env` is not ours to read."""
    own = config_folder()
    return Sources(environ, Path("/"), dotenv_unattended(own), config_file_in(own))

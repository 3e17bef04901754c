"""`import` and `preview`: sessions from files of `opencode export`, or out of OpenCode's own store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.backfill.import_files import Imported, import_files
from app.cli import render
from app.cli.options import (
    DONE,
    PROBLEM,
    AsJson,
    Chosen,
    Endpoint,
    EnvFile,
    ExportMode,
    SpoolDirectory,
    print_json,
    print_lines,
    sources_of,
)
from app.operations.preview import Previewed, as_json, preview
from app.sources.opencode.export_files import FILE_BYTES_MAX, File
from app.sources.opencode.store import Store, store_file

importing = typer.Typer()

Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Written by opencode export; - is standard input.")]
FilesOrSessions = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE|SESSION", help="Written by opencode export, or the id of a session in OpenCode's own store."
    ),
]


@importing.command("import")
def _import(  # noqa: PLR0913 - one for each option
    files: Files,
    *,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    endpoint: Endpoint = None,
    export_mode: ExportMode = None,
    chosen: Chosen = None,
    sanitized: Annotated[
        bool, typer.Option("--sanitized", help="Also take a sanitized export of a session that is known.")
    ] = False,
    json_wanted: AsJson = False,
) -> None:
    """Queue sessions of opencode export.

    All files are one set: subagents find their parents in it. A turn that never ended counts as interrupted. A second
    import of the same changes nothing. No worker is started.
    """
    sources = sources_of(env_file, spool_directory, endpoint, export_mode, chosen=chosen)
    opened = _files(files)
    with render.progress(opened) as step:
        results = list(import_files(opened, sources, on_read=step, takes_sanitized=sanitized))
    if json_wanted:
        numbers = ("new", "known", "superseded", "off", "shut", "copied", "odd", "unreadable")
        jobs = {name: sum(getattr(one, name) for one in results) for name in numbers}
        print_json({"jobs": jobs, "files": [asdict(one) for one in results]})
    else:
        for result in results:
            print_lines(render.import_lines(result), failed=_is_failed(result))
    raise typer.Exit(PROBLEM if any(_is_failed(result) for result in results) else DONE)


@importing.command("preview")
def _preview(
    files: FilesOrSessions,
    *,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    endpoint: Endpoint = None,
    export_mode: ExportMode = None,
    chosen: Chosen = None,
    json_wanted: AsJson = False,
) -> None:
    """Print exactly what would leave.

    And what the redaction takes out of it. Nothing is sent, and nothing is queued.
    """
    sources = sources_of(env_file, spool_directory, endpoint, export_mode, chosen=chosen)
    failed = False
    told: list[dict[str, object]] = []
    for result in preview(_files_or_sessions(files), sources):
        failed = failed or _is_failed(result)
        if json_wanted:
            told.append(as_json(result))
        else:
            print_lines(render.preview_lines(result), failed=_is_failed(result))
    if json_wanted:
        print_json({"sessions": told})
    raise typer.Exit(PROBLEM if failed else DONE)


def _files(names: Iterable[str]) -> list[File]:
    return [File(name, sys.stdin.buffer.read(FILE_BYTES_MAX + 1) if name == "-" else None) for name in names]


def _files_or_sessions(names: Iterable[str]) -> list[File]:
    """A name that looks like a session's id, and is no file, is looked up in OpenCode's own store."""
    found = []
    for name in names:
        is_session = name.startswith("ses_") and not Path(name).exists()
        found += Store(store_file(os.environ)).files(name) if is_session else _files([name])
    return found


def _is_failed(result: Imported | Previewed) -> bool:
    return isinstance(result, Imported) and (result.outcome == "failed" or result.unreadable > 0)

"""Commands `import` and `preview`: sessions from files of `opencode export`, or out of OpenCode's own store."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.backfill.import_files import NUMBERS, Imported, import_files
from app.cli import render
from app.cli.options import DONE, OF_CAPTURE, PROBLEM, AsJson, print_json, print_lines, takes
from app.operations.preview import Previewed, as_json, preview
from app.settings.lookup import Sources
from app.sources.opencode.export_files import FILE_BYTES_MAX, File
from app.sources.opencode.store import Store, store_file

commands = typer.Typer()

LONG_FILES = 20
LONG_BYTES = 20_000_000
"""Work on so much is long enough for a progress bar."""

Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Written by opencode export; - is standard input.")]
FilesOrSessions = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE|SESSION", help="Written by opencode export, or the id of a session in OpenCode's own store."
    ),
]


@commands.command("import")
@takes(OF_CAPTURE)
def _import(
    sources: Sources,
    files: Files,
    *,
    sanitized: Annotated[
        bool, typer.Option("--sanitized", help="Also take a sanitized export of a session that is known.")
    ] = False,
    json_wanted: AsJson = False,
) -> None:
    """Queue sessions of opencode export.

    All files are one set: subagents find their parents in it. A turn that never ended counts as interrupted. A second
    import of the same changes nothing. No worker is started.
    """
    opened = _files(files)
    with render.bar("importing", total_min=_steps_min(opened)) as bar:
        results = list(import_files(opened, sources, on_step=bar.show, takes_sanitized=sanitized))
    if json_wanted:
        jobs = {name: sum(getattr(one, name) for one in results) for name in NUMBERS}
        print_json({"jobs": jobs, "files": [asdict(one) for one in results]})
    else:
        for result in results:
            print_lines(_import_lines(result), failed=_is_failed(result))
    raise typer.Exit(PROBLEM if any(_is_failed(result) for result in results) else DONE)


@commands.command("preview")
@takes(OF_CAPTURE)
def _preview(
    sources: Sources,
    files: FilesOrSessions,
    *,
    json_wanted: AsJson = False,
) -> None:
    """Print exactly what would leave.

    And what the redaction takes out of it. Nothing is sent, and nothing is queued.
    """
    failed = False
    told: list[dict[str, object]] = []
    for result in preview(_files_or_sessions(files), sources):
        failed = failed or _is_failed(result)
        if json_wanted:
            told.append(as_json(result))
        else:
            print_lines(_preview_lines(result), failed=_is_failed(result))
    if json_wanted:
        print_json({"sessions": told})
    raise typer.Exit(PROBLEM if failed else DONE)


def _files(names: Iterable[str]) -> list[File]:
    return [File(name, sys.stdin.buffer.read(FILE_BYTES_MAX + 1) if name == "-" else None) for name in names]


def _files_or_sessions(names: Iterable[str]) -> list[File]:
    """A name that is no file, and looks like none, is looked up in OpenCode's own store."""
    found = []
    for name in names:
        is_session = name != "-" and not Path(name).exists() and not {"/", "."} & {*name}
        found += Store(store_file(os.environ)).files(name) if is_session else _files([name])
    return found


def _steps_min(files: Sequence[File]) -> int:
    """Of how many steps on a bar is worth it: of any where the files are large. Each file is two."""
    paths = [Path(file.name) for file in files if file.data is None]
    is_large = sum(path.stat().st_size for path in paths if path.is_file()) >= LONG_BYTES
    return 0 if is_large else 2 * LONG_FILES


def _is_failed(result: Imported | Previewed) -> bool:
    return isinstance(result, Imported) and (result.outcome == "failed" or result.unreadable > 0)


def _import_lines(result: Imported) -> Iterator[str]:
    numbers = {
        "new": result.new,
        "known": result.known,
        "older than what is known": result.superseded,
        "noted without content": result.off,
        "not taken (captured while off, or deleted)": result.shut,
        "copied by a fork": result.copied,
        "odd value(s)": result.odd,
        "turn(s) that cannot be read": result.unreadable,
    }
    told = ", ".join(f"{number} {name}" for name, number in numbers.items() if number)
    if result.outcome == "imported":
        told = "; ".join(filter(None, [told or "nothing to export", result.reason]))
    else:
        told = f"{result.outcome}: {result.reason}"
    yield ": ".join(filter(None, [result.file, result.session, told]))


def _preview_lines(result: Previewed | Imported) -> Iterator[str]:
    if isinstance(result, Imported):
        yield from _import_lines(result)
        return
    yield f"{result.file}: {result.session}: {len(result.records)} records, {result.mode}"
    for record in result.records:
        yield f"--- {record.path} ({record.kind}, {record.request_id}, {len(record.body)} bytes)"
        yield from json.dumps(json.loads(record.body), ensure_ascii=False, indent=2).split("\n")
    for name, number in sorted(result.hits.items()):
        yield f"redacted: {name}: {number}"
    for name, number in sorted(result.identity_hits.items()):
        yield f"NOT redacted, matches an id or a name: {name}: {number}"

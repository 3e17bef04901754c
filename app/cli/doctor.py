"""Command `doctor`: prints what is examined as it is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import DONE, OF_DESTINATION, PROBLEM, AsJson, print_json, print_lines, takes
from app.operations import doctor
from app.operations.finding import Finding
from app.runtime import clock
from app.settings.lookup import Sources

commands = typer.Typer()


@commands.command("doctor")
@takes(OF_DESTINATION)
def _doctor(
    sources: Sources,
    *,
    send: Annotated[bool, typer.Option("--send", help="Also send a tiny log and look for it.")] = False,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Look for it so long.")] = 30,
    json_wanted: AsJson = False,
) -> None:
    """Check everything, and say what to do.

    Exit code 1 when there is a problem.
    """
    found: list[Finding] = []
    for finding in _examined(sources, timeout, send=send):
        found.append(finding)
        if not json_wanted:
            print_lines([_line(finding)])
    if json_wanted:
        print_json({"findings": [asdict(one) for one in found]})
    raise typer.Exit(PROBLEM if any(one.level == "problem" for one in found) else DONE)


def _examined(sources: Sources, timeout_s: float, *, send: bool) -> Iterator[Finding]:
    yield from doctor.examine(sources, Path.cwd(), clock.now_ms())
    if send:
        from app.operations import send_test  # noqa: PLC0415 - as in `_worker`

        yield from send_test.send(sources.load(), clock.now_ms(), timeout_s)


def _line(finding: Finding) -> str:
    todo = f" ({finding.todo})" if finding.todo else ""
    return f"{finding.level:8} {finding.check}: {finding.found}{todo}"

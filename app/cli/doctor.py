"""Command `doctor`: a verdict, then the faults, each with what it means and what to type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.cli import render
from app.cli.layout import show
from app.cli.options import DONE, OF_DESTINATION, PROBLEM, AsJson, print_json, takes
from app.operations import doctor
from app.operations.finding import FAULTS, Finding
from app.operations.mend import mend
from app.runtime import clock
from app.runtime.terminal import counted
from app.settings.lookup import Sources

commands = typer.Typer()


@commands.command("doctor")
@takes(OF_DESTINATION)
def _doctor(
    sources: Sources,
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend.")] = False,
    send: Annotated[bool, typer.Option("--send", help="Also send a tiny log and look for it.")] = False,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Look for it so long.")] = 30,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what is well.")] = False,
    json_wanted: AsJson = False,
) -> None:
    """Find what is wrong, say why it matters and what to type.

    Exit code 1 when there is a problem.
    """
    with render.spinner("looking"):
        found = list(_examined(sources, timeout, send=send and not fix))
        mended = mend(sources, Path.cwd(), found) if fix else []
        if fix:
            found = list(_examined(sources, timeout, send=send))
    if json_wanted:
        print_json({"findings": [as_json(one) for one in found], "mended": mended})
    else:
        show(lines(found, mended, verbose=verbose))
    raise typer.Exit(PROBLEM if any(one.level == "problem" for one in found) else DONE)


def _examined(sources: Sources, timeout_s: float, *, send: bool) -> Iterator[Finding]:
    yield from doctor.examine(sources, Path.cwd(), clock.now_ms())
    if send:
        from app.operations import send_test  # noqa: PLC0415 - as in `_worker`

        yield from send_test.send(sources.load(), clock.now_ms(), timeout_s)


def as_json(finding: Finding) -> dict[str, object]:
    told = {name: value for name, value in asdict(finding).items() if name != "instead"}
    return {**told, "why": finding.why, "command": finding.command}


def lines(found: Sequence[Finding], mended: Sequence[str], *, verbose: bool) -> Iterator[str]:
    """The verdict, what was mended, problems, then warnings."""
    by_level = {level: [one for one in found if one.level == level] for level in ("problem", "warning", "ok")}
    faults = [*by_level["problem"], *by_level["warning"]]
    well = counted(len(by_level["ok"]), "check")
    told = ", ".join(counted(len(by_level[level]), level) for level in ("problem", "warning") if by_level[level])
    if not faults:
        yield f"ok: nothing is wrong ({well})"
    else:
        yield f"{faults[0].level}: {told}; {well} well" + ("" if verbose else " (-v shows them)")
    yield from (f"mended: {one}" for one in mended)
    for one in faults:
        yield f"{one.level} {one.name}: {one.check}: {one.found}"
        if one.why:
            yield f"  why: {one.why}"
        if one.todo and one.todo not in one.command:
            yield f"  do: {one.todo}"
        if one.command:
            yield f"  {one.command}"
    if not mended and any(FAULTS[one.name].is_mended for one in faults):
        yield "opencode-helicone doctor --fix mends what is safe to mend"
    yield from (f"ok {one.check}: {one.found}" for one in by_level["ok"] if verbose)

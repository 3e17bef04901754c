"""Command `sent`: what left this machine, when and where to."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import Annotated

import typer

from app.cli import layout
from app.cli.options import OF_SPOOL, PROGRAM, AsJson, StoreFile, print_json, print_lines, since_option, takes
from app.ledger.job import SESSION_RECORD
from app.operations.jobs import session_named
from app.operations.reading import ask_ledger
from app.operations.sent import Sent, ShownSession, as_json, read_sent
from app.operations.titles import Titles, project_name
from app.runtime import clock
from app.runtime.terminal import counted
from app.settings.lookup import Sources
from app.sources.opencode.store import Store, store_file

commands = typer.Typer(rich_markup_mode=None)

DAYS = 7
DAY_MS = 24 * 3_600_000
SHOWN = 20
KEY_CHARACTERS = 12


@commands.command("sent")
@takes(OF_SPOOL)
def _sent(
    sources: Sources,
    session: Annotated[
        str | None, typer.Argument(metavar="SESSION", help="The beginning of a session's id: its turns, one by one.")
    ] = None,
    *,
    since: Annotated[int | None, since_option(f"Sent since ({DAYS}d)")] = None,
    db: StoreFile = None,
    json_wanted: AsJson = False,
) -> None:
    """Say what left this machine.

    By session, or turn by turn: when, where to, how much of it, and how much was redacted before.
    """
    if session is not None and since is not None:
        raise typer.BadParameter("--since is for all sessions: of one SESSION all is shown")
    now_ms = clock.now_ms()
    since_ms = now_ms - DAYS * DAY_MS if since is None else since
    titles = Titles(Store(db or store_file(os.environ)))

    def read(ledger: sqlite3.Connection) -> Sent:
        return read_sent(ledger, titles, since_ms, None if session is None else session_named(ledger, session))

    found = ask_ledger(sources.load().spool_directory, read)
    if json_wanted:
        print_json(as_json(found))
        return
    print_lines(
        lines(found, since_ms, now_ms, layout.width())
        if session is None
        else session_lines(found, session, layout.width())
    )


def lines(found: Sent, since_ms: int, now_ms: int, room: int) -> Iterator[str]:
    since = layout.local(since_ms, "%Y-%m-%d %H:%M")
    if not found.sessions:
        yield f"nothing left since {since}: --since 1000d looks further back"
        return
    records = counted(sum(one.sent.records for one in found.sessions), "record")
    yield f"left since {since}: {records} of {counted(len(found.sessions), 'session')}"
    yield _amount(found.sessions)
    for endpoint in dict.fromkeys(one.endpoint for one in found.sessions):
        yield layout.fit(f"to {endpoint}", room)
    if found.not_taken:
        told = f"{counted(found.not_taken, 'job')} beside these: posted perhaps, and not taken"
        yield layout.fit(f"{told}: {PROGRAM} jobs list --state dead --state pending", room)
    if found.problem:
        yield layout.fit(f"without titles: {found.problem}", room)
    shown = found.sessions[:SHOWN]
    is_wide = room >= layout.NARROW
    head = ["last", "records", "bytes", "redacted", *(["project"] if is_wide else []), "session"]
    cells = [
        [
            layout.ago(one.sent.last_ms, now_ms),
            str(one.sent.records),
            "?" if one.sent.unmeasured == one.sent.turns else layout.size(one.sent.record_bytes),
            "?" if one.sent.unmeasured == one.sent.turns else str(one.sent.redactions),
            *([project_name(one.directory) or "-"] if is_wide else []),
            one.title or one.sent.session,
        ]
        for one in shown
    ]
    yield from layout.rows([head, *cells], room, right=(1, 2, 3))
    if len(found.sessions) > len(shown):
        yield f"and {len(found.sessions) - len(shown)} more: --json has all"
    yield f"one of them, turn by turn: {PROGRAM} sent {shown[0].sent.session}"


def _amount(sessions: tuple[ShownSession, ...]) -> str:
    turns, unmeasured = sum(one.sent.turns for one in sessions), sum(one.sent.unmeasured for one in sessions)
    if turns == unmeasured:
        return "from before their size was kept"
    told = f"{layout.size(sum(one.sent.record_bytes for one in sessions))}, "
    told += counted(sum(one.sent.redactions for one in sessions), "redaction")
    return f"{told} (known of {turns - unmeasured} of {counted(turns, 'turn')})" if unmeasured else told


def session_lines(found: Sent, asked: str, room: int) -> Iterator[str]:
    if not found.jobs:
        yield f"nothing of {asked} left this machine: {PROGRAM} jobs show {asked}"
        return
    for first in found.sessions[:1]:
        yield layout.fit(f"{first.title or first.sent.session}  ({first.directory or 'project not known'})", room)
    for one in found.sessions:
        yield f"to {one.endpoint}: {counted(one.sent.records, 'record')}, {_amount((one,))}"
    head = ["when", "records", "bytes", "redacted", "job", "turn"]
    cells = []
    for job in found.jobs:
        size = (
            None if job.record_bytes is None else job.record_bytes * min(job.taken, job.records) // max(job.records, 1)
        )
        cells.append(
            [
                layout.local(job.last_ms),
                f"{min(job.taken, job.records)} of {job.records}",
                "?" if size is None else layout.size(size),
                "?" if job.redactions is None else str(job.redactions),
                job.key[:KEY_CHARACTERS],
                ("the session's own record" if job.turn == SESSION_RECORD else job.turn)
                + ("" if job.taken else f" ({job.state}: posted perhaps, and not taken)"),
            ]
        )
    yield from layout.rows([head, *cells], room, right=(1, 2, 3))
    if found.problem:
        yield layout.fit(f"without titles: {found.problem}", room)

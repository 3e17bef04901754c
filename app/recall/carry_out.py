"""A recall is carried out: queued, delivered by a worker or here, and read back."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from app.capture.targets import find_target
from app.cli.render import spinner
from app.cli.render_recall import Report
from app.database.open import open_ledger
from app.delivery.confirm import plan as confirm_plan
from app.exporters.helicone.client import Client
from app.exporters.helicone.routes import read_back_url
from app.ledger import history
from app.ledger.destinations import Destination
from app.operations.flush import flush
from app.queue import Bell
from app.recall import compare
from app.recall.expected import Likeness
from app.recall.recall import Recall
from app.runtime import clock
from app.settings.lookup import Sources


class StoppedError(Exception):
    """Somebody interrupted the delivery."""


def overwrite(
    sources: Sources,
    ours: Destination,
    held: Recall,
    turns: Mapping[str, Collection[str]],
    report: Report,
    end_s: float,
) -> list[Likeness]:
    """Queue and deliver, and again what was in flight meanwhile, until the time is up; what is to be seen then.

    `end_s` is monotonic. Raises what `flush` and `Recall.plan` do, and StoppedError.
    """
    expected: list[Likeness] = []
    left = turns
    while True:
        left = _queue(sources.load().spool_directory, ours, held, left, report, expected)
        with spinner("overwriting"):
            flushed = flush(sources, max(0.0, end_s - time.monotonic()), only_present=True)
        if flushed.was_stopped:
            raise StoppedError
        if not left or not flushed.is_done or time.monotonic() >= end_s:
            break
    for session, names in left.items():
        report.complain(session, (f"{name}: it was being delivered just then; recall it again" for name in names))
    report.problems += _undelivered(sources, turns)
    if not flushed.is_done:
        report.problems += flushed.waiting
    return expected


def _queue(
    spool: Path,
    ours: Destination,
    held: Recall,
    turns: Mapping[str, Collection[str]],
    report: Report,
    expected: list[Likeness],
) -> dict[str, tuple[str, ...]]:
    """Plan again and queue; returns what was in flight and must be queued again, by session."""
    left = {}
    with closing(Bell(spool, ours.id)) as bell:
        for session, wanted in turns.items():
            plan = held.plan(session, wanted)
            report.complain(session, plan.problems)
            queued = held.queue(plan, clock.now_ms(), bell.ring)
            expected += queued.expected
            if queued.in_flight:
                left[session] = queued.in_flight
    return left


def _undelivered(sources: Sources, turns: Mapping[str, Collection[str]]) -> Iterator[str]:
    settings = sources.load()
    with closing(open_ledger(settings.spool_directory)) as db:
        ours = find_target(db, settings)
        for session, wanted in turns.items():
            for one in history.exported(db, ours.id, session) if ours is not None else ():
                if one.turn in wanted and one.state not in {"delivered", "superseded"}:
                    told = one.drop_reason or one.error
                    yield f"{session}: {one.turn}: {one.state}{f' ({told})' if told else ''}"


def read_back(sources: Sources, expected: Sequence[Likeness], report: Report, end_s: float) -> None:
    settings = sources.load()
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    url = read_back_url(settings.endpoint, key, settings.readback_url)
    if url is None:
        report.notes.append("it cannot be read back: nothing says where; set HELICONE_READBACK_URL")
        return
    pace = confirm_plan("on", settings.endpoint, key, settings.readback_url).queries_per_minute
    with spinner("reading back"), Client(key) as client:
        seen = compare.look(client, url, expected, queries_per_minute=pace, end_s=end_s)
    for one in seen:
        if one.outcome != "overwritten":
            report.complain(one.session, [f"{one.path}: {one.outcome}{f' ({one.reason})' if one.reason else ''}"])
    report.outcomes = compare.counted(seen)

"""What a destination that refuses everything costs one that is well: the time from a turn's capture to its delivery.

    python -m benchmarks destinations

The same turns at the same pace, alone and beside the other, in turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from app.capture.config import capture
from app.capture.enqueue import Place, enqueue
from app.capture.targets import target
from app.database.connection import Ledger
from app.database.open import open_ledger
from app.queue import Queue
from app.runtime import clock
from app.runtime.liveness import present
from app.settings.lookup import Sources, unattended
from app.transcript.parse import parse
from benchmarks.table import Row
from tests.support.enqueuer import growing
from tests.support.lean_receiver import lean_receiver
from tests.support.otlp_receiver import otlp_receiver
from tests.support.servers import api_key

TURNS, ROUNDS = 150, 5
PAUSE_S = 0.03
GOAL_P99 = 1.5
NAME = "beside"
_TABLE = '[destinations.{name}]\nkind = "otlp"\nendpoint = "{url}"\n'


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    turns, rounds = (5, 1) if short else (TURNS, ROUNDS)
    alone_ms, beside_ms = [], []
    for number in range(rounds):
        alone_ms.append(_p99_ms(number, turns, is_beside=False))
        beside_ms.append(_p99_ms(number, turns, is_beside=True))
    yield Row(
        what="99th percentile of the time from capture to delivery, beside a destination that refuses",
        beside="the same alone",
        ratios=[ours / floor for ours, floor in zip(beside_ms, alone_ms, strict=True)],
        goal=GOAL_P99,
        note=f"{statistics.median(beside_ms):.0f} ms beside it, {statistics.median(alone_ms):.0f} ms alone",
    )


def _p99_ms(number: int, turns: int, *, is_beside: bool) -> float:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        well, refusing = stack.enter_context(lean_receiver()), stack.enter_context(otlp_receiver())
        refusing.headers_wanted = {"Authorization": "another"}
        environ = {
            **{name: text for name, text in os.environ.items() if name in ("PATH", "LANG", "PYTHONPATH")},
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(home / "spool"),
            "OPENCODE_HELICONE_CONFIRM": "off",
            "HELICONE_API_KEY": api_key(),
            "HELICONE_ENDPOINT": well.url,
        }
        own = home / "config" / "opencode-helicone"
        own.mkdir(parents=True)
        (own / "config.toml").write_text(_TABLE.format(name=NAME, url=refusing.url), "utf-8")
        sources = replace(unattended(environ), own=own)
        both = [sources, *([replace(sources, destination=NAME)] if is_beside else [])]
        for one in both:
            command = [sys.executable, "-m", "app", "worker", "--destination", one.destination]
            process = stack.enter_context(
                subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
        while len(present(home / "spool" / "workers")) < len(both):
            time.sleep(0.05)
        db = stack.enter_context(closing(open_ledger(home / "spool")))
        for turn in range(turns):
            for one in both:
                _take(db, one, number * turns + turn)
            time.sleep(PAUSE_S)
        return _delays_p99_ms(db, turns)


def _take(db: Ledger, sources: Sources, session: int) -> None:
    settings = sources.load()
    ours = target(db, settings, clock.now_ms())
    with closing(Queue(settings.spool_directory, ours.id)) as queue:
        enqueue(
            db,
            parse(growing(session, 1)),
            capture(settings, ()),
            Place(ours.id, ""),
            now_ms=clock.now_ms(),
            wake=queue.wake,
        )


def _delays_p99_ms(db: Ledger, turns: int) -> float:
    delivered: list[int] = []
    while len(delivered) < turns:
        time.sleep(0.2)
        delivered = [
            row["delay_ms"]
            for row in db.execute(
                "select j.finished_ms - j.enqueued_ms as delay_ms from job j join turn t on t.id = j.turn_id"
                " join destination d on d.id = j.destination_id"
                " where d.kind = 'helicone' and t.name <> 'session' and j.state = 'delivered'"
            )
        ]
    return max(1.0, statistics.quantiles(delivered, n=100, method="inclusive")[98])

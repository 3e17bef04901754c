"""Snapshots that grow turn by turn, and a process that enqueues them through the embedded API, to be killed.

python -m tests.support.enqueuer      reads lines {"session": N, "turns": K} and answers each when it is stored
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator

from app.capture.config import capture
from app.capture.enqueue import Place, enqueue
from app.capture.export import split
from app.capture.targets import target
from app.database.open import open_ledger
from app.privacy.terms import Capture
from app.queue import Queue
from app.runtime import clock
from app.runtime.spool import Spool
from app.settings.lookup import unattended
from app.transcript.identity import Identity
from app.transcript.parse import parse
from tests.support import snapshots
from tests.support.snapshots import Fields

BEGAN_MS = 1_750_000_000_000
RECORDS_PER_TURN = 2
WORDS = ("ledger", "turn", "claim", "lease", "ring", "record", "answer", "worker")


def name(session: int) -> str:
    return f"ses_hammer{session}"


def growing(session: int, turns: int) -> Fields:
    """The snapshot after so many turns. As in OpenCode, the title comes with the second one."""
    dice = random.Random(session)  # noqa: S311 - nothing to protect
    created_ms = BEGAN_MS + session * 1_000_000
    messages: list[Fields] = []
    for turn in range(turns):
        asked_ms = created_ms + turn * 10_000
        asks, answers = f"msg_{session}_{turn}a", f"msg_{session}_{turn}b"
        words = " ".join(dice.choices(WORDS, k=dice.choice((5, 50, 2_000))))
        messages += [
            snapshots.user(asks, asked_ms, snapshots.text(f"{turn}: please", f"prt_{asks}")),
            snapshots.assistant(answers, asked_ms + 10, snapshots.text(words, f"prt_{answers}"), parent=asks),
        ]
    return snapshots.snapshot(
        snapshots.entry(
            *messages,
            name=name(session),
            title="New session" if turns == 1 else f"Session {session}",
            time={"created": created_ms, "updated": created_ms + turns * 10_000},
        )
    )


def records(session: int, turns: int, capturing: Capture) -> Iterator[tuple[str, bytes]]:
    """(request id, body) of what the receiver must hold of a session in the end."""
    ready, _ = split(parse(growing(session, turns)), capturing, Identity(""), abandoned=False)
    for export in ready:
        for record in export.encode():
            yield record.request_id, record.body


def main() -> None:
    settings = unattended(dict(os.environ)).load()
    spool = Spool(settings.spool_directory)
    db = open_ledger(spool.path)
    ours = target(db, settings, clock.now_ms())
    queue = Queue(spool.path, ours.id)
    capturing = capture(settings, ())
    for line in sys.stdin:
        step = json.loads(line)
        transcript = parse(growing(step["session"], step["turns"]))
        enqueue(db, transcript, capturing, Place(ours.id, ""), now_ms=clock.now_ms(), wake=queue.wake)
        print(line.strip(), flush=True)  # noqa: T201 - stored: this is the answer


if __name__ == "__main__":
    main()

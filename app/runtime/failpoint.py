"""Failpoints: where a test has the process die, as by `kill -9`. Without a test each of them does nothing.

    OPENCODE_HELICONE_CRASH_AT=POINT[:PASS][@SUBJECT]

The process kills itself when it reaches the point for the PASS-th time (the first, if none is given); with a subject
only passes with that subject count. The variable is read once, when this module is imported.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, field

VARIABLE = "OPENCODE_HELICONE_CRASH_AT"

POINTS = (
    "notice.noted",  # what the plugin said is owed, nothing is read
    "notice.read",  # turns are read from OpenCode's store, nothing of them is in the ledger
    "notice.settling",  # all that a notice named is in the ledger; that nothing is owed any more is not committed
    "enqueue.inserting",  # a job and its records are written, not committed
    "enqueue.committed",  # all jobs of a transcript are committed, nobody is woken
    "claim.committed",  # a worker has the job, and has done nothing yet
    "post.sending",  # subject: the request id
    "post.answered",  # Helicone has answered, the ledger does not know; subject: the request id
    "acknowledge.noting",  # the acknowledgement is written, not committed
    "acknowledge.committed",
    "complete.noting",  # the last acknowledgements are written, not committed
    "complete.finishing",  # delivered and without bodies, not committed
    "complete.committed",
    "recover.freeing",  # what a dead worker held is free, not committed
    "poller.waking",  # it is known who is to be woken, nobody is
    "prune.dropping",  # jobs are dropped, not committed
    "migrate.applying",  # a migration is applied, not committed
    "erase.beginning",  # what a person wants gone is deleted, and lies in the files
    "erase.rewritten",  # the ledger is rewritten, as far as the log is copied into it
    "erase.finishing",  # it is in no file any more, and still noted
    "intake.committed",  # a log is in the ledger, and its machine has no answer yet
    "worker.ending",  # the worker was told to end; its lock file is still there
)
"""Every point there is."""


@dataclass(slots=True)
class _Armed:
    point: str
    subject: str
    passes_left: int
    lock: threading.Lock = field(default_factory=threading.Lock)


def _read(text: str) -> _Armed | None:
    """Raises ValueError for a point that is not one of POINTS: a test with a misspelt name must not pass."""
    if not text:
        return None
    place, _, subject = text.partition("@")
    point, _, passes = place.partition(":")
    if point not in POINTS:
        raise ValueError(f"{VARIABLE} names no crash point: {point}")
    return _Armed(point, subject, int(passes or 1))


_armed = _read(os.environ.get(VARIABLE, ""))


def reach(point: str, subject: str = "") -> None:
    """Die here, if the environment says so."""
    if _armed is None or point != _armed.point or _armed.subject not in {"", subject}:
        return
    with _armed.lock:
        _armed.passes_left -= 1
        if _armed.passes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

"""Embedded API: what a program needs that exports transcripts of its own.

from app import enqueue

settings = enqueue.unattended(dict(os.environ)).load()
db = enqueue.open_ledger(settings.spool_directory)
ours = enqueue.target(db, settings, now_ms)
place = enqueue.Place(ours.id, enqueue.folder(db, directory))
wake = enqueue.Queue(settings.spool_directory, ours.id).wake
enqueue.enqueue(db, enqueue.parse(snapshot), enqueue.capture(settings, ()), place, now_ms=now_ms, wake=wake)
"""

from app.capture.config import capture
from app.capture.enqueue import Enqueued, Place, Request, enqueue
from app.capture.targets import folder, target
from app.database.open import open_ledger
from app.queue import Queue
from app.settings.lookup import unattended
from app.transcript.parse import parse

__all__ = [
    "Enqueued",
    "Place",
    "Queue",
    "Request",
    "capture",
    "enqueue",
    "folder",
    "open_ledger",
    "parse",
    "target",
    "unattended",
]

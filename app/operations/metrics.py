"""Metrics: numbers for who watches many machines, in the text format of Prometheus. No session, no path."""

from __future__ import annotations

import errno
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.ledger.counters import counters
from app.operations.reading import UnreadableLedgerError, look_at_ledger
from app.operations.status import Status, status_in
from app.runtime.filesystem import replace_file
from app.settings.model import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "opencode_helicone"
_BY_NAME = {
    "delivered": ("deliveries", "Jobs delivered.", ""),
    "failed": ("failed_attempts", "Attempts that failed, by Helicone's status or what came in its place.", "outcome"),
    "lost": ("lost_jobs", "Jobs given up, by reason.", "reason"),
    "redacted": ("redactions", "What was taken out of records, by rule.", "rule"),
}
"""By kind of counter: the metric, what it says, its label."""


def exposition(settings: Settings, now_ms: int) -> bytes:
    """All of it; of a ledger that cannot be read no more than that."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(settings, now_ms))
    return generate_latest(registry)


class _Numbers(Collector):
    def __init__(self, settings: Settings, now_ms: int) -> None:
        self._settings = settings
        self._now_ms = now_ms

    def collect(self) -> Iterator[Metric]:
        yield gauge("info", "1, with the version as a label.", 1, {"version": __version__})
        try:
            found = look_at_ledger(self._settings.spool_directory, self._read)
        except UnreadableLedgerError:
            found = []
        yield gauge("ledger_readable", "1 where the queue can be read.", int(bool(found)), {})
        yield from found

    def _read(self, db: sqlite3.Connection) -> list[Metric]:
        status = status_in(db, self._settings, self._now_ms)
        return [*_of_status(status, self._now_ms), *_of_counters(db)]


def gauge(name: str, told: str, value: float, labels: dict[str, str]) -> GaugeMetricFamily:
    """A number of its own."""
    metric = GaugeMetricFamily(f"{PREFIX}_{name}", told, labels=list(labels))
    metric.add_metric(list(labels.values()), value)
    return metric


def _of_status(status: Status, now_ms: int) -> Iterator[Metric]:
    label = ["destination"]
    jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs by state.", labels=[*label, "state"])
    oldest = GaugeMetricFamily(f"{PREFIX}_oldest_pending_seconds", "Age of the job that waits longest.", labels=label)
    is_up = GaugeMetricFamily(f"{PREFIX}_destination_up", "1 unless it is down or refuses.", labels=label)
    unconfirmed = GaugeMetricFamily(f"{PREFIX}_confirmations_pending", "Delivered jobs to be read back.", labels=label)
    about = GaugeMetricFamily(f"{PREFIX}_destination_info", "1, with the host as a label.", labels=[*label, "host"])
    for one in status.destinations:
        if one.id is None:
            continue
        name = str(one.id)
        for state in ("pending", "delivered", "dead", "superseded", "dropped"):
            jobs.add_metric([name, state], getattr(one.jobs, state))
        waited_ms = 0 if one.oldest_pending_ms is None else max(0, now_ms - one.oldest_pending_ms)
        oldest.add_metric([name], waited_ms / 1000)
        is_up.add_metric([name], int(one.pause_reason is None))
        unconfirmed.add_metric([name], one.confirmation.waiting)
        about.add_metric([name, urlsplit(one.endpoint).netloc], 1)
    yield from (jobs, oldest, is_up, unconfirmed, about)
    yield gauge("spool_bytes", "What the spool directory takes.", status.spool_bytes, {})
    yield gauge("held_bytes", "Bodies not delivered or not confirmed, compressed.", status.held_bytes, {})
    yield gauge("held_bytes_max", "What these may take (maxSpoolSize).", status.held_bytes_max, {})
    yield gauge("workers", "Workers that are alive.", len(status.workers), {})
    yield gauge("hooks", "Hooks that are alive.", len(status.hooks), {})
    told = "Time since the last sign of life: 0 while a worker lives, else since the queue was written to."
    yield gauge("heartbeat_age_seconds", told, 0 if status.workers else _unwritten_ms(status, now_ms) / 1000, {})
    last = status.last_delivery
    if last is not None:
        told = "Time since the last delivery that is known."
        yield gauge("last_delivery_age_seconds", told, max(0, now_ms - last.delivered_ms) / 1000, {})


def _unwritten_ms(status: Status, now_ms: int) -> int:
    """A lock says who is alive, not since when who was is dead; the ledger's files say when one committed last."""
    files = [Path(status.spool) / name for name in ("ledger.db", "ledger.db-wal")]
    # Who only looks leaves an empty log.
    found = [file.stat() for file in files if file.exists()]
    written_ms = max((one.st_mtime_ns // 1_000_000 for one in found if one.st_size), default=now_ms)
    return max(0, now_ms - written_ms)


def _of_counters(db: sqlite3.Connection) -> Iterator[Metric]:
    found = counters(db, 0)
    for kind, (name, told, label) in _BY_NAME.items():
        metric = CounterMetricFamily(f"{PREFIX}_{name}", told, labels=[label] if label else [])
        of_kind = [one for one in found if one.kind == kind]
        for one in of_kind:
            metric.add_metric([one.name] if label else [], one.count)
        if not of_kind and not label:
            metric.add_metric([], 0)
        yield metric


def write_textfile(path: Path, data: bytes) -> None:
    """In place of the file that was there, at once: whoever collects such files reads no half of one.

    Raises OSError with this path, also where something else than a file is there: it would be gone.
    """
    if (path.exists() or path.is_symlink()) and not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file, and not replaced", str(path))
    try:
        replace_file(path, data, 0o644, is_flushed=False)  # the collector is another user
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # not of the draft

"""Confirm: reads delivered jobs back at Helicone, one record of each, because a 200 does not mean stored.

    found                  confirmed: its bodies go
    found without bodies   the quota is exceeded: marked, and can be sent again later
    not found              looked for again, sent again, and in the end dead: accepted but not stored

Not finding something is held against a job only where Helicone shows what it has. So each query asks also for the row
that was found last (the control):

    control found                      what else is missing is missing
    control missing                    the look was blind: nothing is concluded, reading back waits
    last found longer ago than a day   unproven: the same, until something is found again
    nothing was ever found             what is missing is missing; `status` says so in its first line

A 200 is no proof: a self-hosted Helicone that lacks a variable answers 200 and stores nothing, for ever. So there every
job is read back. On the cloud one an hour is, which is enough to notice; while its quota is exceeded all are, to mark
them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from app.database.connection import Database
from app.delivery.backoff import pause_ms
from app.exporters.client import Client, ReadBackError
from app.exporters.traits import Plan, Traits
from app.ledger import confirmations, destinations, flow, readback
from app.ledger.confirmations import Unconfirmed
from app.ledger.readback import Control

SAMPLE_MS = 3_600_000
"""On the cloud one job is read back in so long a time."""
RESENDS_MAX = 2
PAUSE_BASE_MS = 10_000
PAUSE_CAP_MS = 3_600_000

CONTROL_MS = 24 * 3_600_000
"""A row that was found longer ago proves nothing about new ones."""

JOBS_MAX = 200
"""In one pass."""
IDS_MAX = 25
"""In one query."""
BYTES_MAX = 16 * 2**20
"""Of bodies that one query asks for: the answer has them, whether they are wanted or not."""
BYTES_UNKNOWN = 2**20


def when(db: Database, destination_id: int, plan: Plan, traits: Traits, now_ms: int) -> int | None:
    """When a job that is delivered now is to be read back; None: not at all."""
    if plan.url is None:
        return None
    one = destinations.by_id(db, destination_id)
    first_ms = now_ms + traits.looks_ms(one.route, 0)[0]
    # What was just delivered got through, so it is worth asking again.
    readback.end_read_back_pause(db, destination_id, first_ms)
    if (
        plan.is_sampled
        and one.health != "quota"
        and not flow.take_sample(db, destination_id, now_ms=now_ms, every_ms=SAMPLE_MS)
    ):
        return None
    return first_ms


@dataclass(slots=True)
class Allowance:
    """Queries that may be made: so many in a minute, and what was not used in the last one."""

    per_minute: int
    left: float
    counted_ms: int

    def take(self, now_ms: int) -> bool:
        # A clock that was set back gives nothing for a while, and one that jumped ahead no more than a minute's worth.
        earned = self.per_minute * max(0, now_ms - self.counted_ms) / 60_000
        self.left = min(self.per_minute, self.left + earned)
        self.counted_ms = now_ms
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(frozen=True, slots=True)
class Unread:
    """Nothing could be read back."""

    reason: str
    """Status and class: no text of a transcript."""


Fetch: TypeAlias = Callable[[int, Sequence[uuid.UUID]], Mapping[uuid.UUID, bool] | Unread]
"""(earliest start in ms, wanted request ids) -> those that are stored, and whether with their bodies."""


def fetch_from(client: Client, url: str) -> Fetch:
    """Ask this client, at the address of `Plan`."""

    def fetch(start_ms: int, request_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, bool] | Unread:
        try:
            return client.stored(url, start_ms=start_ms, request_ids=request_ids)
        except ReadBackError as error:
            return Unread(str(error))

    return fetch


def confirm(
    db: Database,
    destination_id: int,
    fetch: Fetch,
    now_ms: int,
    *,
    traits: Traits,
    allowance: Allowance,
    dice: Callable[[], float],
) -> str | None:
    """One pass over what is due. Returns why reading back came to nothing: then the next pass waits, delivery does not.

    `dice` is uniform in 0..1.
    """
    failures = readback.read_back_failures(db, destination_id, now_ms)
    if failures is None:
        return None
    due = confirmations.due_for_confirmation(db, destination_id, now_ms, JOBS_MAX)
    for query in _queries(due):
        if not allowance.take(now_ms):
            return None
        reason = _look(db, destination_id, query, fetch, traits, now_ms)
        if reason is not None:
            delay_ms = pause_ms(failures + 1, base_ms=PAUSE_BASE_MS, cap_ms=PAUSE_CAP_MS, dice=dice())
            readback.pause_read_back(db, destination_id, reason, now_ms + delay_ms)
            return reason
        readback.resume_read_back(db, destination_id)
    return None


def _queries(due: Sequence[Unconfirmed]) -> Iterator[list[Unconfirmed]]:
    """What is due, so many at once as one answer may hold."""
    batch: list[Unconfirmed] = []
    size = 0
    for job in due:
        job_bytes = BYTES_UNKNOWN if job.body_bytes is None else job.body_bytes
        if batch and (len(batch) == IDS_MAX or size + job_bytes > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += job_bytes
    if batch:
        yield batch


def _look(
    db: Database,
    destination_id: int,
    query: Sequence[Unconfirmed],
    fetch: Fetch,
    traits: Traits,
    now_ms: int,
) -> str | None:
    """Ask for some jobs and for the control, and settle what the answer tells; why it tells nothing, or None."""
    wanted = {one.request_id: one.start_ms or 0 for one in query}
    control = readback.control(db, destination_id)
    fresh_id = None if control is None or abs(now_ms - control.found_ms) > CONTROL_MS else control.request_id
    if control is not None and fresh_id is not None:
        wanted[fresh_id] = control.start_ms
    answer = fetch(min(wanted.values()), list(wanted))
    if isinstance(answer, Unread):
        return answer.reason
    found = [one for one in query if one.request_id in answer]
    for one in found:
        _found(db, destination_id, one, now_ms, has_body=answer[one.request_id])
    missing = [one for one in query if one.request_id not in answer]
    if control is not None and fresh_id not in answer:
        # Where something was found after all, it is the control by now: the next pass asks for the others again.
        if found or not missing:
            return None
        return readback.UNPROVEN if fresh_id is None else readback.BLIND
    if control is None and missing:
        readback.note_missed(db, destination_id, now_ms)
    for one in missing:
        _miss(db, destination_id, one, traits, now_ms)
    return None


def _found(db: Database, destination_id: int, one: Unconfirmed, now_ms: int, *, has_body: bool) -> None:
    if one.start_ms is not None:
        readback.note_found(db, destination_id, Control(one.request_id, one.start_ms, now_ms))
    if not confirmations.confirmed(db, one, now_ms, has_body=has_body):
        return
    if has_body:
        flow.within_quota(db, destination_id)
    elif flow.exceed_quota(db, destination_id):
        # Where only samples are looked at, what came since the last one may have lost its bodies, too.
        confirmations.look_back(db, destination_id, now_ms)


def _miss(db: Database, destination_id: int, job: Unconfirmed, traits: Traits, now_ms: int) -> None:
    route = destinations.by_id(db, destination_id).route
    later = [at_ms for look in traits.looks_ms(route, job.resends) if (at_ms := job.delivered_ms + look) > now_ms]
    if later:
        confirmations.not_found_yet(db, job, later[0])
    elif job.body_bytes is None:
        confirmations.give_up_confirmation(db, destination_id, job)
    elif job.resends < RESENDS_MAX:
        confirmations.send_again(db, job, now_ms)
    else:
        confirmations.dead_letter_unstored(
            db, job, now_ms, f"accepted but not stored: {'; '.join(traits.NOT_STORED_CAUSES)}"
        )

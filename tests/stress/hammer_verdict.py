"""What must hold after the hammer: the ledger, what the receiver saw, and what had to be sent at all, compared."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.capture.config import capture
from app.receiver.handler import jawn_reply
from app.runtime import clock
from app.settings.lookup import unattended
from tests.support.enqueuer import RECORDS_PER_TURN, records
from tests.support.lean_receiver import FAILED, Send, digest_of
from tests.support.processes import Station

SHOWN_MAX = 20
"""Problems of one kind that are told one by one."""

ORPHANS = {
    "records without their job": "select count(*) from record r"
    " where not exists (select 1 from job j where j.id = r.job_id)",
    "records of a job that needs none": "select count(*) from record r join job j on j.id = r.job_id"
    " where j.state in ('delivered', 'superseded', 'dropped')",
    "acknowledgements without their turn": "select count(*) from acknowledgement a"
    " where not exists (select 1 from turn t where t.id = a.turn_id)",
    "turns without a job": "select count(*) from turn t where not exists (select 1 from job j where j.turn_id = t.id)",
    "sessions without a turn": "select count(*) from session s"
    " where not exists (select 1 from turn t where t.session_id = s.id)",
    "turns with two current jobs": "select count(*) from"
    " (select 1 from job where state <> 'superseded' group by turn_id having count(*) > 1)",
    "pending jobs without all of their records": "select count(*) from job j where j.state = 'pending'"
    " and j.record_count <> (select count(*) from record r where r.job_id = j.id)",
}
"""What must never be there, at any time."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What was there when it was over, besides the ledger."""

    sessions: Mapping[int, int]
    """How many turns each had."""
    in_flight: Counter[tuple[str, str]]
    """(request id, digest) in hex: how many kills each record was in flight at."""
    sends: list[Send]
    bodies: Mapping[str, bytes]
    """Stored ones, by digest."""


@dataclass(slots=True)
class Verdict:
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def must(self, fact: str, value: int, *, be: int = 0) -> None:
        self.facts[fact] = value
        if value != be:
            self.problems.append(f"{fact}: {value} instead of {be}")


def orphans(db: sqlite3.Connection) -> list[str]:
    """Rows that nothing owns, at any time."""
    counts = [(what, db.execute(query).fetchone()[0]) for what, query in ORPHANS.items()]
    return [f"{what}: {found}" for what, found in counts if found]


def judge(db: sqlite3.Connection, ends: Ends, station: Station) -> Verdict:
    verdict = Verdict()
    _judge_ledger(db, ends, verdict)
    expected = expected_digests(ends.sessions, station)
    _judge_sends(ends, verdict)
    _judge_rows(ends, expected, station, verdict)
    acknowledged = {
        str(uuid.UUID(bytes=row["request_id"])): row["digest"].hex()
        for row in db.execute("select request_id, digest from acknowledgement")
    }
    differing = [one for one, digest in expected.items() if acknowledged.get(one) != digest]
    verdict.must("records whose last acknowledgement is another version's", len(differing))
    return verdict


def _judge_ledger(db: sqlite3.Connection, ends: Ends, verdict: Verdict) -> None:
    jobs = Counter({row[0]: row[1] for row in db.execute("select state, count(*) from job group by state")})
    verdict.facts["turns"] = sum(ends.sessions.values())
    verdict.must("jobs delivered", jobs["delivered"], be=sum(ends.sessions.values()) + len(ends.sessions))
    verdict.must("jobs dead", jobs["dead"])
    verdict.must("jobs dropped", jobs["dropped"])
    verdict.must("jobs left pending", jobs["pending"])
    leased = db.execute("select count(*) from job where lease_until_ms is not null").fetchone()[0]
    verdict.must("leases left", leased)
    found = orphans(db)
    verdict.must("kinds of orphaned rows", len(found))
    verdict.problems += found
    kills = db.execute("select coalesce(max(kills), 0) from job").fetchone()[0]
    verdict.facts["kills of one job, most"] = kills


def expected_digests(sessions: Mapping[int, int], station: Station) -> dict[str, str]:
    """By request id, the digest of what must be stored in the end: made anew, without any ledger."""
    capturing = capture(unattended(station.environ).load(), ())
    return {
        request_id: digest_of(body)
        for session, turns in sessions.items()
        for request_id, body in records(session, turns, capturing)
    }


def _judge_sends(ends: Ends, verdict: Verdict) -> None:
    """No record is posted more often than faults and kills explain."""
    sends = Counter((send.request_id, send.digest) for send in ends.sends)
    faults = Counter((send.request_id, send.digest) for send in ends.sends if send.answer in FAILED)
    kills = Counter({(str(uuid.UUID(hex=one)), digest): n for (one, digest), n in ends.in_flight.items()})
    unexplained = [one for one, times in sends.items() if times > 1 + faults[one] + kills[one]]
    verdict.facts["POSTs"] = len(ends.sends)
    verdict.facts["  answered " + ", ".join(sorted({send.answer for send in ends.sends}))] = ", ".join(
        str(times) for _, times in sorted(Counter(send.answer for send in ends.sends).items())
    )
    again = sum(times - 1 for times in sends.values())
    verdict.facts["  again, after a fault"] = sum(faults.values())
    verdict.facts["  again, after a kill"] = again - sum(faults.values())
    verdict.facts["  of one record, most"] = max(sends.values(), default=0)
    verdict.must("records sent more often than faults and kills explain", len(unexplained))
    verdict.problems += [
        f"{one[0]}: {sends[one]} sends, {faults[one]} faults, {kills[one]} kills" for one in unexplained[:SHOWN_MAX]
    ]


def _judge_rows(ends: Ends, expected: Mapping[str, str], station: Station, verdict: Verdict) -> None:
    """What Helicone would hold, by its own rule: a log with an equal key takes the place of the one before."""
    rows: dict[tuple[object, ...], str] = {}
    headers = {"authorization": f"Bearer {station.key}", "content-type": "application/json"}
    keys = {}
    for digest, body in ends.bodies.items():
        log = jawn_reply(headers, body, None, clock.now_ms(), "").log
        assert log is not None
        # All have the one organisation of the one key.
        keys[digest] = (log.provider, log.model, log.user_id, log.created_ms, log.request_id)
    for send in ends.sends:
        if send.stored:
            rows[keys[send.digest]] = send.digest
    by_id = defaultdict(list)
    for key, digest in rows.items():
        by_id[str(key[-1])].append(digest)
    turns = sum(ends.sessions.values())
    verdict.must("rows at the receiver", len(rows), be=turns * RECORDS_PER_TURN + len(ends.sessions))
    verdict.must("rows doubled", sum(len(digests) - 1 for digests in by_id.values()))
    lost = [one for one in expected if one not in by_id]
    verdict.must("records lost", len(lost))
    stale = [one for one, digest in expected.items() if by_id[one] not in ([], [digest])]
    verdict.must("rows that hold an old version", len(stale))
    verdict.must("rows that nobody asked for", len(by_id.keys() - expected.keys()))
    verdict.problems += [f"lost or stale: {one}" for one in (lost + stale)[:SHOWN_MAX]]

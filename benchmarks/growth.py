"""What each look at the ledger costs with 100,000 jobs that wait, beside the same with 1,000.

    python -m benchmarks growth
    python -m benchmarks.growth [JOBS]       each look on each shape, e.g. of a million jobs

CPU of this thread. Each ledger is made by SQL: jobs with bodies, as many delivered ones with their acknowledgements,
some dead ones with attempts. Of the shapes the table shows, for each look, the one that grew most.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from app.capture.config import capture
from app.capture.eviction import Eviction
from app.capture.recapture import Recapturer
from app.capture.targets import target
from app.database.connection import Ledger, transaction
from app.database.open import open_ledger
from app.database.schema import statements
from app.delivery.policy_check import PolicyCheck
from app.delivery.policy_sweep import PolicySweep
from app.delivery.poller import Poller
from app.ledger import claims, dead_letters, maintenance, pruning
from app.ledger.job import Claim
from app.operations.status import read_status
from app.queue import Queue
from app.runtime.clock import Reading
from app.runtime.liveness import Announced
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from benchmarks.table import Row

JOBS, FEWER = 100_000, 1_000
SHORT_JOBS, SHORT_FEWER = 400, 200
REPEATS = 15
NOW_MS = 1_900_000_000_000
LEASE_MS = 60_000
ENDPOINT = "https://helicone.example.invalid"
DISTINCT_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    jobs_per_session: int = 33
    """0: all are of one session."""
    backoff: float = 0.05
    """Which part of the jobs is not due yet."""
    history: float = 0.0
    isolated: int = 0
    is_paused: bool = False
    leased: int = 0
    """In flight at a worker that is alive."""


SHAPES = (
    Shape("sessions of 33"),
    Shape("one session", jobs_per_session=0),
    Shape("sessions of one", jobs_per_session=1),
    Shape("nine in ten in backoff", backoff=0.9),
    Shape("one session, nine in ten in backoff", jobs_per_session=0, backoff=0.9),
    Shape("history and live mixed, some in flight", history=0.5, leased=4),
    Shape("three isolated", isolated=3),
    Shape("paused", is_paused=True),
    Shape("one session, paused, nine in ten in backoff", jobs_per_session=0, backoff=0.9, is_paused=True),
)

_BUILD = """
insert into policy (id, facts) values (1, :policy);

insert into session (id, destination_id, name, root_name, user_id, folder, encoding, shown_name)
select i + 1, 1, 'ses_' || i, 'ses_' || i, '', '', 2, 'project' from numbers where i < :sessions;

insert into turn (id, session_id, name) select i + 1, i / 2 / :per_session + 1, 'msg_' || i from numbers;

-- Every other one is delivered, so that what waits stands among what does not.
insert into job (id, destination_id, session_id, turn_id, policy_id, key, state, facts_ms, enqueued_ms, due_ms,
    finished_ms, attempt, setbacks, failures, passes_seen, kills, attempted_ms, error, confirmed_ms, is_history,
    known_marks, record_count, body_bytes)
select i + 1, 1, i / 2 / :per_session + 1, i + 1, 1, printf('%064x', i * 7919), state, :now - 3600000 + i,
    :now - 3600000 + i,
    case when state <> 'pending' then null when waits then :now + 1 + i % 3600000 else :now - 3600000 + i end,
    iif(state = 'pending', null, :now - 1000000 + i), 1 + waits * 2, waits * 3, waits * 2,
    iif(waits, 1 + i % 50, null), 0, iif(state <> 'pending' or waits, :now - 1800000 + i, null),
    case when state = 'dead' or waits then '500: error ' || i % :errors end,
    iif(state = 'delivered', :now - 900000 + i, null), i / 2 % 100 < :history * 100, '', 4,
    iif(state = 'delivered', 0, 600)
from (select i, state, state = 'pending' and i / 2 * 37 % 1000 < :backoff * 1000 as waits
    from (select i, case when i % 2 then 'delivered' when i % 200 = 0 then 'dead' else 'pending' end as state
        from numbers));

insert into record (job_id, position, request_id, digest, body_bytes)
select j.id, p.i, randomblob(16), randomblob(16), 800
from job j, (select 0 as i union select 1 union select 2 union select 3) p where j.state <> 'delivered';

insert into bundle (job_id, bodies) select id, randomblob(600) from job where state <> 'delivered';

insert into acknowledgement (turn_id, request_id, digest, acknowledged_ms)
select j.turn_id, randomblob(16), randomblob(16), j.finished_ms
from job j, (select 1 union select 2 union select 3 union select 4) where j.state = 'delivered';

insert into attempt (job_id, number, started_ms, ended_ms, status, error)
select id, n, attempted_ms, attempted_ms, 500, error
from job, (select 1 as n union select 2 union select 3) where error is not null and n <= attempt;

update job set kills = 2 where id in
(select id from job where state = 'pending' and due_ms <= :now order by id desc limit :isolated);

update job set lease_until_ms = :now + 500000, worker = :worker where id in
(select min(id) from job where state = 'pending' and due_ms <= :now group by session_id limit :leased);

update destination set passes = 60, health = iif(:paused, 'down', 'fine'),
    pause_reason = iif(:paused, '503', null), probe_ms = iif(:paused, :now, null);
"""


def build(db: Ledger, shape: Shape, jobs: int, policy: str, worker: str) -> None:
    """Twice as many jobs as wait; as far as the shape goes by numbers of jobs, they are the same for any."""
    per_session = shape.jobs_per_session or jobs
    arguments = {
        "policy": policy,
        "worker": worker,
        "now": NOW_MS,
        "sessions": -(-jobs // per_session),
        "per_session": per_session,
        "backoff": shape.backoff,
        "history": shape.history,
        "isolated": shape.isolated,
        "leased": shape.leased,
        "paused": shape.is_paused,
        "errors": DISTINCT_ERRORS,
    }
    with transaction(db):
        db.execute(
            "create temp table numbers as with recursive n (i) as"
            " (select 0 union all select i + 1 from n where i < ? - 1) select i from n",
            (2 * jobs,),
        )
        for statement in statements(_BUILD):
            db.execute(statement, {name: value for name, value in arguments.items() if f":{name}" in statement})
    db.execute("drop table numbers")
    with transaction(db):  # begins the WAL anew, as the first write after a long one does
        db.execute("update destination set created_ms = created_ms + 1")


class Site:
    """One worker's view of a ledger, on a clock that stands still."""

    def __init__(self, folder: Path, shape: Shape, jobs: int, opened: ExitStack) -> None:
        environ = {
            "HOME": str(folder),
            "HELICONE_API_KEY": "key",
            "HELICONE_ENDPOINT": ENDPOINT,
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(folder / "spool"),
            "OPENCODE_HELICONE_MAX_SPOOL_SIZE": str(1 << 40),
        }
        sources = Sources(environ, folder, folder / "own")
        self.settings = sources.load()
        self.spool = Spool(self.settings.spool_directory)
        self.db = opened.enter_context(closing(open_ledger(self.spool.path)))
        announced = Announced(self.spool.workers)
        opened.callback(announced.withdraw)
        ours = target(self.db, self.settings, 0)
        build(self.db, shape, jobs, capture(self.settings, ()).policy.facts(""), announced.name)
        self.destination = ours.id
        keys = self.db.execute(
            "select key from job where state = 'pending' and session_id not in"
            " (select session_id from job where lease_until_ms is not null) order by id"
        )
        self.keys = [row["key"] for row in keys.fetchall()[:: max(1, jobs // 100)]]
        self.room = Eviction(folder / "no store")
        sweep = PolicySweep(
            PolicyCheck(sources), Recapturer(folder / "no store", ours.id, self.spool.hooks), ours.id, self.log
        )
        self.queue = Queue(self.spool.path, ours.id)
        opened.callback(self.queue.close)
        self.poller = Poller(
            ours, self.settings, self.spool, self.queue, sweep, self.room, is_sending=True, log=self.log
        )
        self.claimed: Claim | None = None

    def log(self, message: str) -> None:
        raise AssertionError(message)  # nothing is wrong here, and nothing is dropped


def _claim(site: Site) -> None:
    site.claimed = claims.claim(
        site.db, site.destination, site.keys[0], worker="nobody", now_ms=NOW_MS, lease_ms=LEASE_MS
    )


def _unclaim(site: Site) -> None:
    """As it was before: the next claim finds the same ledger."""
    site.keys.append(site.keys.pop(0))
    if site.claimed is not None:
        with transaction(site.db):
            site.db.execute(
                "update job set lease_until_ms = null, worker = null, attempt = attempt - 1,"
                " attempted_ms = iif(setbacks > 0, attempted_ms, null) where id = ?",
                (site.claimed.job_id,),
            )
            site.db.execute("update destination set probe_ms = ? where probe_ms is not null", (NOW_MS,))
            site.db.execute("delete from attempt where job_id = ? and ended_ms is null", (site.claimed.job_id,))


def _nothing(_: Site) -> None:
    pass


def _look(site: Site) -> None:
    maintenance.to_wake(site.db, site.destination, NOW_MS, 24)
    maintenance.next_due_ms(site.db, site.destination, NOW_MS)
    maintenance.next_of_session(site.db, site.destination, "ses_0", NOW_MS)


def _unwarp(site: Site) -> None:
    assert maintenance.reset_future_times(site.db, NOW_MS) == 0


def _room(site: Site) -> None:
    made = site.room.make(site.db, NOW_MS, site.settings.max_spool_bytes)
    assert not made.evicted
    assert not made.dropped


def _status(site: Site) -> None:
    read_status(site.settings, NOW_MS)


def _groups(site: Site) -> None:
    assert len(dead_letters.dead_groups(site.db)) == 1


def _aged(site: Site) -> None:
    assert pruning.drop_aged(site.db, NOW_MS, site.settings.max_spool_age_ms) == 0


def _tick(site: Site) -> None:
    site.poller.tick(site.db, Reading(NOW_MS, 0))


def _answer(site: Site) -> None:
    """A thread takes one wake, so that the next tick has one to give, however many sessions there are."""
    message = site.queue.huey.storage.dequeue()
    if message is not None:
        (key,) = json.loads(message)["args"]
        site.queue._woken_s.pop(key)  # noqa: SLF001 - as Huey does it before it calls us


def _prune_next(site: Site) -> None:
    """The next tick does what is otherwise done once a minute."""
    _answer(site)
    site.poller._pruned_ms = 0  # noqa: SLF001 - the clock stands still here, and no lease runs out


LOOKS: tuple[tuple[str, Callable[[Site], None], Callable[[Site], None]], ...] = (
    ("claim", _claim, _unclaim),
    ("look for what is due", _look, _nothing),
    ("times far ahead", _unwarp, _nothing),
    ("room check", _room, _nothing),
    ("status", _status, _nothing),
    ("dead letters by reason", _groups, _nothing),
    ("what is too old", _aged, _nothing),
    ("the worker's whole tick", _tick, _answer),
    ("the tick of each minute", _tick, _prune_next),
)
"""What it is, what is measured of it, and what is done after it so that the next time is the same."""


@dataclass(frozen=True, slots=True)
class Grown:
    shape: Shape
    ratios: list[float]
    few_ms: float
    many_ms: float


def cpu_s(site: Site, look: Callable[[Site], None], after: Callable[[Site], None]) -> float:
    began_s = time.thread_time()
    look(site)
    spent_s = time.thread_time() - began_s
    after(site)
    return spent_s


def measure(shape: Shape, fewer: int, jobs: int, repeats: int) -> Iterator[tuple[str, Grown]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        sites = [Site(Path(folder) / str(number), shape, number, opened) for number in (fewer, jobs)]
        for name, look, after in LOOKS:
            for site in sites:
                cpu_s(site, look, after)  # a first time: what is read from the file then stays in memory
            pairs = [[cpu_s(site, look, after) for site in sites] for _ in range(repeats)]
            few_ms, many_ms = (1000 * statistics.median(one) for one in zip(*pairs, strict=True))
            yield name, Grown(shape, [many / few for few, many in pairs], few_ms, many_ms)


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as every benchmark has it
    fewer, jobs, repeats = (SHORT_FEWER, SHORT_JOBS, 2) if short else (FEWER, JOBS, REPEATS)
    found: dict[str, list[Grown]] = {}
    for shape in SHAPES:
        for name, grown in measure(shape, fewer, jobs, repeats):
            found.setdefault(name, []).append(grown)
    for name, all_grown in found.items():
        worst = max(all_grown, key=lambda one: statistics.median(one.ratios))
        note = f"{worst.few_ms:.2f} to {worst.many_ms:.2f} ms, {worst.shape.name}"
        yield Row(f"{name}: {jobs:,} pending", f"{fewer:,} pending", worst.ratios, 1.5, note=note)


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    for shape in SHAPES:
        for name, grown in measure(shape, FEWER, jobs, REPEATS):
            ratio = statistics.median(grown.ratios)
            print(
                f"{shape.name:50} {name:25} x {ratio:7.2f}  {grown.few_ms:8.2f} to {grown.many_ms:9.2f} ms", flush=True
            )


if __name__ == "__main__":
    main()

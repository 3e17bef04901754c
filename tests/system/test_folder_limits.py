"""What a project's files limit binds the jobs of its folder, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.capture.eviction import Eviction, Freed
from app.capture.folder_limits import of_folders
from app.database.connection import Ledger
from app.delivery.backoff import RetryPolicy
from app.delivery.deliver import DeliveryContext, deliver
from app.exporters.outcome import Outcome
from app.ledger import confirmations, destinations, eviction, flow, folders, maintenance, pruning
from app.ledger.job import Version
from app.ledger.maintenance import STEADY_MS
from app.privacy.policy import Post
from app.settings.model import Origin, Settings
from app.sources.opencode.store import store_file
from tests.support.ledger_bench import WORKER, LedgerBench, version
from tests.support.processes import PROJECT, Station, hook, worker
from tests.support.recorded import Snapshot, export
from tests.support.servers import nobody, receiving
from tests.support.stores import WrittenStore
from tests.support.waiting import wait_until
from tests.system.test_policy_sweep import configure, own_folder

OTHER = "/home/dev/other"
SIMPLE = "a_simple"
JOBS = 2
"""Of that recording."""


# --- processes: a real worker and a real receiver


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "", variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "1"})


def captured(station: Station, directory: str, *told: Snapshot) -> None:
    with hook(station) as process:
        for one in told:
            process.show(one, directory=directory)
        process.end()


def forget(station: Station, *told: Snapshot) -> None:
    """OpenCode's store loses them."""
    with closing(WrittenStore(store_file(station.environ))) as store:
        for one in told:
            store.delete(one["root"])


def limit(station: Station, directory: str, **limits: int) -> None:
    """As a hook records what stands in the files of a project."""
    with station.ledger() as db:
        place = destinations.fingerprint(db, directory)
        ours = destinations.destinations(db)[0].id
        options = folders.folder_options(db, place) or {}
        folders.remember_folder(db, place, ours, {**options, **limits}, 1_000)


def unheard(station: Station) -> tuple[Station, int]:
    """The station with an endpoint where nobody listens yet, and its port."""
    with nobody() as url:
        return replace(station, endpoint=url), urlsplit(url).port or 0


def by_folder(station: Station, column: str) -> dict[str, list[object]]:
    """Of all jobs, in order."""
    with station.ledger() as db:
        names = {destinations.fingerprint(db, name): name for name in (PROJECT, OTHER)}
        found: dict[str, list[object]] = {PROJECT: [], OTHER: []}
        for row in db.execute("select s.folder, j.* from job j join session s on s.id = j.session_id order by j.id"):
            found[names[row["folder"]]].append(row[column])
        return found


def test_a_job_is_retried_as_often_as_its_own_project_says(station: Station, tmp_path: Path) -> None:
    configure(own_folder(station), maxRetries=2)
    with receiving(tmp_path / "store.db") as receiver:
        station = replace(station, endpoint=receiver.url)
        for directory, name in ((OTHER, SIMPLE), (PROJECT, "b_tools")):
            # The session's own record passes; what is left is alone, and is charged in the end.
            receiver.fault({"times": 1}, {"status": 500, "times": 1_000})
            captured(station, directory, export(name))
            limit(station, OTHER, maxRetries=1)
            with worker(station):
                wait_until(lambda: station.counts().pending == 0)
    errors = by_folder(station, "error")
    assert errors[OTHER] == [None, "500: empty body (after 1 retries)"]
    assert errors[PROJECT] == [None, "500: empty body (after 2 retries)"]


def test_a_job_is_given_up_at_the_age_that_its_own_project_says(station: Station, tmp_path: Path) -> None:
    station, port = unheard(station)
    captured(station, OTHER, export(SIMPLE))
    captured(station, PROJECT, export("b_tools"))
    with worker(station):
        wait_until(lambda: destination_is_down(station))
    assert station.counts().pending == 2 * JOBS
    limit(station, OTHER, maxSpoolAge=1)
    # Without a key it claims nothing, so that no job is in flight when it looks.
    with worker(replace(station, key="")):
        wait_until(lambda: station.counts().dropped_by_reason == {"age": JOBS})
    assert by_folder(station, "state") == {OTHER: ["dropped"] * JOBS, PROJECT: ["pending"] * JOBS}
    with receiving(tmp_path / "receiver" / "store.db", port=port), worker(station):
        wait_until(lambda: station.delivered(JOBS))


def destination_is_down(station: Station) -> bool:
    with station.ledger() as db:
        return destinations.destinations(db)[0].health == "down"


def test_the_bodies_of_a_folder_are_kept_below_its_own_size(station: Station, tmp_path: Path) -> None:
    stored, lost, neighbour = export(SIMPLE), export("b_tools"), export("c_second_prompt")
    station, port = unheard(station)
    # A hook of yesterday, without a key: nothing is in flight when the worker looks.
    without_key = replace(station, key="")
    captured(without_key, OTHER, stored, lost)
    captured(without_key, PROJECT, neighbour)
    forget(station, lost, neighbour)
    sizes = by_folder(station, "body_bytes")
    limit(station, OTHER, maxSpoolSize=1)
    with worker(without_key):
        wait_until(lambda: station.counts().dropped_by_reason)
    # What OpenCode's store holds waits without its bodies.
    assert by_folder(station, "state")[OTHER] == ["pending"] * JOBS + ["dropped"] * JOBS
    assert by_folder(station, "body_bytes") == {OTHER: [0] * 2 * JOBS, PROJECT: sizes[PROJECT]}
    with receiving(tmp_path / "receiver" / "store.db", port=port) as receiver, worker(station):
        wait_until(lambda: station.delivered(JOBS + len(sizes[PROJECT])))
        sessions = {row.log.properties["Helicone-Session-Id"] for row in receiver.rows()}
    assert sessions == {stored["root"], neighbour["root"]}


def test_a_hook_keeps_to_the_size_of_its_folder_where_no_worker_runs(station: Station) -> None:
    with hook(station) as process:
        process.show(export("b_tools"), directory=PROJECT)
        process.show(export(SIMPLE), directory=OTHER)
        wait_until(lambda: station.counts().pending == 2 * JOBS)
        limit(station, OTHER, maxSpoolSize=1)
        process.show(export("c_second_prompt"), directory=OTHER)
        process.end()
    # Nothing is dropped: OpenCode's store has it.
    assert set(by_folder(station, "state")[OTHER]) == {"pending"}
    sizes = by_folder(station, "body_bytes")
    assert set(sizes[OTHER]) == {0}
    assert 0 not in sizes[PROJECT]


# --- which limits there are


def test_a_limit_is_overruled_by_what_overrules_a_plugins_options(db: Ledger) -> None:
    ours = destinations.destination(db, "https://example.invalid", "f", 0).id
    folders.remember_folder(db, "own", ours, {"maxRetries": 2, "exportMode": "full"}, 1)
    folders.remember_folder(db, "none", ours, {"maxSpoolAge": "7d"}, 1)
    for source, counts in {
        "command line": False, "environment": False, ".env": False, "plugin": True, "config file": True,
    }.items():  # fmt: skip
        own = Settings(max_retries=5, origins={"max_retries": Origin(source, source)})  # type: ignore[arg-type]
        assert of_folders(db, own, "max_retries") == ({"own": 2} if counts else {}), source
    assert of_folders(db, Settings(), "max_retries") == {"own": 2}
    assert of_folders(db, Settings(), "max_spool_age_ms") == {}


@pytest.mark.parametrize(("steady_ms", "age_ms", "trusted"), [
    (STEADY_MS, STEADY_MS * 9, True), (STEADY_MS - 1, STEADY_MS * 9, False),
    (STEADY_MS - 1, STEADY_MS - 1, True), (5, 6, False),
])  # fmt: skip
def test_each_age_waits_for_a_clock_that_has_gone_on_for_as_long_or_an_hour(
    steady_ms: int, age_ms: int, *, trusted: bool
) -> None:
    assert maintenance.trusted_age_ms(age_ms, steady_ms) == (age_ms if trusted else folders.NEVER_MS)


# --- retries


@pytest.mark.parametrize(("own", "posts"), [(None, 4), (0, 1), (1, 2), (9, 10)])
def test_the_folder_of_a_job_decides_how_often_it_is_charged(bench: LedgerBench, own: int | None, posts: int) -> None:
    bench.put(replace(version(), folder="f"))
    posted = []

    def post(_: object, _body: object) -> Outcome:
        posted.append(bench.now_ms)
        return Outcome("retry", "500", 500)

    context = DeliveryContext(
        destination_id=bench.destination,
        worker=WORKER,
        policy=RetryPolicy(max_retries=3, base_ms=1, cap_ms=1),
        permit=lambda _: Post(),
        post=post,
        clock=lambda: bench.now_ms,
        dice=lambda: 1.0,
        stopping=lambda: False,
        max_retries_of=lambda held: own if held.folder == "f" else None,
    )
    while bench.state() == "pending":
        flow.passed(bench.db, bench.destination)  # others' records
        deliver(bench.db, version().key, context)
        bench.now_ms += 1
    assert len(posted) == posts
    assert bench.row()["error"] == f"500 (after {posts - 1} retries)"


# --- age and size


FOLDERS = ("", "b", "c")
MAKE = {
    "pending": "update job set attempted_ms = :tried where key = :key",
    "dead": "update job set state = 'dead', due_ms = null, finished_ms = enqueued_ms where key = :key",
    "leased": "update job set lease_until_ms = :now, worker = 'w', attempted_ms = :tried where key = :key",
    "recall": "update job set is_recall = 1, attempted_ms = :tried where key = :key",
    "delivered": (
        "update job set state = 'delivered', due_ms = null, finished_ms = enqueued_ms, confirm_ms = :now"
        " where key = :key"
    ),
}
NOW_MS = 10_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job to be."""

    folder: str
    kind: str
    body_bytes: int
    age_ms: int
    is_tried: bool
    is_stored: bool
    """OpenCode's store holds its turn."""

    @property
    def is_free(self) -> bool:
        return self.kind in ("pending", "dead")


WANTED = st.builds(
    Wanted,
    folder=st.sampled_from(FOLDERS),
    kind=st.sampled_from(sorted(MAKE)),
    body_bytes=st.integers(1, 9),
    age_ms=st.integers(1, 9),
    is_tried=st.booleans(),
    is_stored=st.booleans(),
)
OF_FOLDERS = st.dictionaries(st.sampled_from(FOLDERS), st.integers(0, 20))


class FakeStore:
    """OpenCode's store, as far as `Room` asks it; it holds the turns of the sessions that are named."""

    path = Path("/nowhere")

    def __init__(self, sessions: set[str]) -> None:
        self._sessions = sessions

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        yield

    def holds(self, session: str, _: str | None) -> bool:
        return session in self._sessions


def fates(
    db: Ledger,
    jobs: list[Wanted],
    size: int,
    age_ms: int,
    sizes: Mapping[str, int],
    ages: Mapping[str, int],
) -> list[tuple[str, int]]:
    """What became of each job, as (state and reason, bytes of bodies), after a worker has looked twice."""
    db.executescript(
        "delete from attempt; delete from footprint; delete from bundle; delete from record;"
        " delete from acknowledgement; delete from confirmation; delete from job; delete from turn; delete from session"
    )
    bench = LedgerBench(db)
    for number, job in enumerate(jobs):
        one: Version = replace(version(session=f"ses_{number}"), folder=job.folder)
        bench.now_ms = NOW_MS - job.age_ms
        bench.put(one)
        db.execute("update job set body_bytes = ? where key = ?", (job.body_bytes, one.key))
        db.execute(MAKE[job.kind], {"key": one.key, "now": NOW_MS, "tried": NOW_MS if job.is_tried else None})
    room = Eviction(Path("/nowhere"))
    room._store = FakeStore({f"ses_{number}" for number, job in enumerate(jobs) if job.is_stored})  # type: ignore[assignment]
    for _ in range(2):
        confirmations.give_up_confirmations(
            db, NOW_MS, bytes_max=size, age_ms_max=age_ms, bytes_max_of=sizes, age_ms_max_of=ages
        )
        pruning.drop_aged(db, NOW_MS, age_ms, ages)
        room.make(db, NOW_MS, size, sizes)
    rows = db.execute("select state, coalesce(drop_reason, '') as reason, body_bytes from job order by id").fetchall()
    return [(f"{row['state']} {row['reason']}".strip(), row["body_bytes"]) for row in rows]


def worth(fate: tuple[str, int]) -> int:
    """The more, the better: whole, without its bodies, gone."""
    state, body_bytes = fate
    return 2 if body_bytes else 0 if state.startswith("dropped") else 1


@given(
    jobs=st.lists(WANTED, max_size=8),
    size=st.integers(0, 60),
    age_ms=st.integers(0, 10),
    sizes=OF_FOLDERS,
    ages=OF_FOLDERS,
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_limit_of_a_folder_costs_another_anything_and_no_limit_is_exceeded(
    db: Ledger, jobs: list[Wanted], size: int, age_ms: int, sizes: dict[str, int], ages: dict[str, int]
) -> None:
    db.execute("pragma synchronous = off")
    found = fates(db, jobs, size, age_ms, sizes, ages)
    for folder in FOLDERS:
        alone = fates(
            db,
            jobs,
            size,
            age_ms,
            {name: limit for name, limit in sizes.items() if name == folder},
            {name: limit for name, limit in ages.items() if name == folder},
        )
        for job, with_others, by_itself in zip(jobs, found, alone, strict=True):
            if job.folder == folder:
                # What others give up may leave it more room; it never has less.
                assert worth(with_others) >= worth(by_itself), job
                assert (with_others[0] == "dropped age") == (by_itself[0] == "dropped age"), job
    for part, bytes_max in [*sizes.items(), (None, size)]:
        those = [(job, fate) for job, fate in zip(jobs, found, strict=True) if part in (None, job.folder)]
        held = sum(fate[1] for job, fate in those if job.kind not in ("recall", "delivered"))
        # What is in flight stays; then nothing else is left.
        assert held <= bytes_max or not [job for job, fate in those if fate[1] and job.is_free]
        unconfirmed = [job for job, fate in those if fate[1] and job.kind == "delivered"]
        assert sum(fate[1] for _, fate in those) <= bytes_max or not unconfirmed
    for job, fate in zip(jobs, found, strict=True):
        is_old = job.kind == "pending" and job.is_tried and job.age_ms > ages.get(job.folder, age_ms)
        assert (fate[0] == "dropped age") == is_old


def test_a_folder_gives_up_its_own_oldest_and_no_more_than_it_must(bench: LedgerBench) -> None:
    made = []
    for number, folder in enumerate(("b", "own", "own", "own", "b")):
        made.append(replace(version(session=f"ses_{number}"), folder=folder))
        bench.now_ms = 1_000 + number
        bench.put(made[-1])
    bench.db.execute("update job set body_bytes = 10")
    room = Eviction(Path("/nowhere"))
    assert room.make(bench.db, 5_000, 50, {"own": 29}) == Freed(0, 1)
    assert [bench.state(one) for one in made] == ["pending", "dropped (size)", "pending", "pending", "pending"]
    # The user's own limit counts what is left.
    assert room.make(bench.db, 5_000, 30, {"own": 29}) == Freed(0, 1)
    assert [bench.state(one) for one in made[:2]] == ["dropped (size)"] * 2


def test_a_folder_without_room_is_not_filled_again(bench: LedgerBench) -> None:
    bench.put(replace(version(), folder="own"))
    held = eviction.held_bytes(bench.db)
    assert eviction.excess_of_folders(bench.db, {"own": held - 1, "b": 0}) == {"own": 1}
    assert eviction.excess_of_folders(bench.db, {"own": held}) == {}

"""Outages on a clock of their own: real ledgers, the real `deliver`, a receiver that goes away for days.

    python -m tests.stress.outage   four days, 300 turns of 1 MB, default settings; a key refused for a day;
                                    20 machines; 30 days, 3,000 turns, 5 MB of room; a destination that refuses for a
                                    day beside one that is well

A delivery runs in a thread of its own and stops in its POST until the clock has come to the time of its answer. The
clock goes on when every thread has stopped, so that a run depends on its seed alone.
"""

from __future__ import annotations

import json
import random
import resource
import sqlite3
import sys
import sysconfig
import tempfile
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from app.capture.enqueue import Place, enqueue
from app.capture.eviction import Eviction
from app.capture.recapture import Recapturer
from app.database.connection import shrink
from app.database.open import open_ledger
from app.delivery.backoff import RetryPolicy
from app.delivery.deliver import DeliveryContext, deliver
from app.delivery.poller import WAKES_PER_TICK
from app.exporters.outcome import Outcome
from app.ledger import (
    adoption,
    confirmations,
    counts,
    destinations,
    eviction,
    flow,
    folders,
    incidents,
    maintenance,
    pruning,
    versions,
)
from app.ledger.job import Body, Version
from app.privacy.policy import Policy, Post
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.runtime.clock import Reading, jump_ms
from app.settings.model import Settings
from app.sources.opencode.store import Store
from app.transcript.model import Transcript
from app.worker import CONSUMER
from tests.sources.opencode.test_store import TABLES
from tests.support.snapshots import assistant, text, tool, user

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000
POST_MS = 200
DEFAULTS = Settings()
ENDPOINT = "https://example.invalid"
CAPTURE = Capture(
    Policy("full", (), redact_secrets=True, prefix="/opencode"),
    Redaction.compile((), secrets=True, known_values=()),
    "",
)

Answer: TypeAlias = Callable[[], Outcome]


def accepted() -> Outcome:
    return Outcome("accepted", "ok", 200)


def unreached() -> Outcome:
    return Outcome("wait", "ConnectError: Connection refused")


def broken() -> Outcome:
    return Outcome("retry", "503: HTML", 503)


def limited() -> Outcome:
    return Outcome("wait", "429: JSON", 429, 60_000)


def refused() -> Outcome:
    return Outcome("refused", "401: error", 401)


@dataclass
class Receiver:
    """Everybody's other side. `answer` may be replaced at any time; what is under way gets the one of its arrival."""

    answer: Answer = accepted
    requests: int = 0
    by_second: Counter[int] = field(default_factory=Counter)
    in_flight: int = 0
    in_flight_max: int = 0


@dataclass
class _Waiting:
    until_ms: int
    outcome: Outcome
    go: threading.Event = field(default_factory=threading.Event)


class World:
    """The clock, and the threads that wait for it."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.accepted: Counter[uuid.UUID] = Counter()
        self.now_ms = 40 * 365 * DAY_MS
        self.post_ms = POST_MS
        self._set_ms = 0
        """By how much the clock was set, or went on while the machine slept."""
        self._lock = threading.Condition()
        self._running = 0
        self._waiting: list[_Waiting] = []

    def post(self, _: object, body: Body, receiver: Receiver | None = None) -> Outcome:
        """In a delivery's thread."""
        receiver = receiver or self.receiver
        with self._lock:
            waiting = _Waiting(self.now_ms + self.post_ms, receiver.answer())
            self._waiting.append(waiting)
            receiver.requests += 1
            receiver.by_second[self.now_ms // SECOND_MS] += 1
            receiver.in_flight += 1
            receiver.in_flight_max = max(receiver.in_flight_max, receiver.in_flight)
            self._running -= 1
            self._lock.notify_all()
        waiting.go.wait()
        with self._lock:
            receiver.in_flight -= 1
            self.accepted[body.request_id] += waiting.outcome.kind == "accepted"
        return waiting.outcome

    def run(self, act: Callable[[], None]) -> None:
        """Start a delivery, and go on when it stops for an answer or is done."""

        def running() -> None:
            try:
                act()
            finally:
                with self._lock:
                    self._running -= 1
                    self._lock.notify_all()

        with self._lock:
            self._running += 1
        threading.Thread(target=running, daemon=True).start()
        self._settle()

    def _settle(self) -> None:
        with self._lock:
            assert self._lock.wait_for(lambda: self._running == 0, 60), "a delivery hangs"

    def read(self) -> Reading:
        return Reading(self.now_ms, self.now_ms - self._set_ms)

    def set_clock(self, by_ms: int) -> None:
        """No time passes: what is under way takes as long as it would have."""
        self.now_ms += by_ms
        self._set_ms += by_ms
        for waiting in self._waiting:
            waiting.until_ms += by_ms

    def sleep(self, ms: int) -> None:
        """The machine is suspended: what was under way finds its connections broken soon after it wakes."""
        self.set_clock(ms)
        for waiting in self._waiting:
            waiting.outcome = unreached()

    @property
    def next_answer_ms(self) -> int | None:
        return min((waiting.until_ms for waiting in self._waiting), default=None)

    def go_to(self, now_ms: int) -> None:
        """Let the clock say so; answers that are due by then arrive one by one, so that a run can be repeated."""
        self.now_ms = max(self.now_ms, now_ms)
        for waiting in [one for one in self._waiting if one.until_ms <= self.now_ms]:
            self._waiting.remove(waiting)
            with self._lock:
                self._running += 1
            waiting.go.set()
            self._settle()


class Machine:
    """One person's spool and worker: what the worker's threads and poller do, each look at its due time."""

    def __init__(
        self, spool: Path, world: World, seed: int, key: str = "key-a", beside: Receiver | None = None
    ) -> None:
        """`beside`: another kind of receiver than everybody's, with a worker of its own in the same spool."""
        self.spool, self.world = spool, world
        self.receiver, self.kind = beside or world.receiver, "helicone" if beside is None else "otlp"
        self.dice = random.Random(seed)  # noqa: S311 - jitter
        self.db = open_ledger(spool)
        self.db.execute("pragma synchronous = off")  # nobody cuts the power here
        self.busy = 0
        self._local = threading.local()
        self._pruned_ms = 0
        self.prune_ms = MINUTE_MS
        self.bytes_max, self.age_ms_max = DEFAULTS.max_spool_bytes, DEFAULTS.max_spool_age_ms
        self.store = spool / "opencode.db"
        self._seen = world.read()
        self.order: dict[str, list[str]] = defaultdict(list)
        self.use_key(key)
        self.room = Eviction(self.store, destinations.own_room(self.destination))

    def close(self) -> None:
        self.db.close()

    def use_key(self, key: str) -> None:
        """As a new worker with this key would start."""
        self.destination = destinations.destination(self.db, ENDPOINT, key, self.world.now_ms, self.kind)
        adoption.take_over(self.db, self.destination, self.world.now_ms)
        flow.probe_now(self.db, self.destination.id, self.world.now_ms)

    def capture(self, session: str, turn: str, bodies: list[Body], folder: str = "folder") -> None:
        now_ms = self.world.now_ms
        key = uuid.uuid5(uuid.NAMESPACE_OID, session + turn).hex * 2
        # As the hook does at the first line of a folder.
        folders.remember_folder(self.db, folder, self.destination.id, {}, now_ms)
        adoption.adopt_rotated(self.db, self.destination, now_ms)
        version = Version(session, session, turn, key, now_ms, "", folder)
        versions.insert(self.db, self.destination.id, version, bodies, now_ms=now_ms)
        self.order[session].append(turn)

    def take(self, transcript: Transcript) -> list[str]:
        """What the hook does with a snapshot; the keys of what is new."""
        place = Place(self.destination.id, "folder")
        done = enqueue(self.db, transcript, CAPTURE, place, now_ms=self.world.now_ms, wake=lambda _: None)
        self.room.make(self.db, self.world.now_ms, self.bytes_max)
        return done.keys

    def look(self) -> None:
        """What the poller does."""
        before, self._seen = self._seen, self.world.read()
        now_ms = self.world.now_ms
        incidents.note_jump(self.db, jump_ms(before, self._seen), now_ms)
        maintenance.reset_future_times(self.db, now_ms)
        maintenance.recover(self.db, now_ms)
        if now_ms - self._pruned_ms >= self.prune_ms or now_ms < self._pruned_ms:
            self._pruned_ms = now_ms
            bytes_max, age_ms_max = self.bytes_max, self.age_ms_max
            age_ms_max = maintenance.trusted_age_ms(age_ms_max, maintenance.steady_ms(self.db, now_ms))
            confirmations.give_up_confirmations(self.db, now_ms, bytes_max=bytes_max, age_ms_max=age_ms_max)
            adoption.take_over(self.db, self.destination, now_ms)
            pruning.drop_aged(self.db, now_ms, age_ms_max)
            self.room.make(self.db, now_ms, bytes_max)
            shrink(self.db)
        for key in maintenance.to_wake(self.db, self.destination.id, now_ms, WAKES_PER_TICK):
            self.answer(key)

    def answer(self, key: str) -> None:
        """What a thread of the worker does with a wake; with all of them busy it is lost here."""
        if self.busy < int(str(CONSUMER["workers"])):
            self.busy += 1
            self.world.run(lambda: self._deliver(key))

    def _deliver(self, key: str) -> None:
        with closing(open_ledger(self.spool)) as db:
            db.execute("pragma synchronous = off")
            following: str | None = key
            while following is not None:
                following = deliver(db, following, self.context(db))
        self.busy -= 1

    def context(self, db: sqlite3.Connection) -> DeliveryContext:
        recapturer = Recapturer(self.store, self.destination.id, self.spool / "hooks")
        return DeliveryContext(
            destination_id=self.destination.id,
            worker="worker",
            policy=RetryPolicy.of(DEFAULTS.max_retries, DEFAULTS.retry_base_delay_ms),
            permit=lambda _: Post(),
            post=partial(self.world.post, receiver=self.receiver),
            clock=lambda: self.world.now_ms,
            dice=self.dice.random,
            stopping=lambda: False,
            rebuild=lambda held: recapturer.rebuild(db, held, CAPTURE),
        )

    def next_look_ms(self) -> int:
        """The real one looks twice a second; here only when there can be something to see."""
        row = self.db.execute(
            "select d.probe_ms, d.concurrency,"
            " (select min(lease_until_ms) from job where destination_id = d.id) as lease_until_ms,"
            " exists (select 1 from job where state = 'pending' and due_ms <= ? and destination_id = d.id"
            " and lease_until_ms is null) as is_due from destination d where id = ?",
            (self.world.now_ms, self.destination.id),
        ).fetchone()
        times_ms = [self._pruned_ms + self.prune_ms]
        if row["lease_until_ms"] is not None:
            times_ms.append(row["lease_until_ms"])
        if row["is_due"]:
            times_ms.append(max(row["probe_ms"] or 0, self.world.now_ms + SECOND_MS // 2))
        due_ms = maintenance.next_due_ms(self.db, self.destination.id, self.world.now_ms)
        return min([*times_ms, *([due_ms] if due_ms is not None else [])])

    def out_of_order(self) -> int:
        """How many turns went before an older one of their session."""
        rows = self.db.execute(
            "select s.name as session, t.name as turn from job j join turn t on t.id = j.turn_id"
            " join session s on s.id = t.session_id where j.state = 'delivered' order by j.finished_ms, j.attempted_ms"
        ).fetchall()
        arrived: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            arrived[row["session"]].append(row["turn"])
        ahead = 0
        for session, turns in arrived.items():
            numbers = [self.order[session].index(turn) for turn in turns]
            ahead += sum(number > min(numbers[at:]) for at, number in enumerate(numbers))
        return ahead


Happening: TypeAlias = tuple[int, Callable[[], None]]
"""When something happens, and what."""


class Coming:
    """What will happen, one by one."""

    def __init__(self, happenings: Iterable[Happening] = ()) -> None:
        self._happenings = iter(happenings)
        self.next: Happening | None = next(self._happenings, None)

    def happen(self, now_ms: int) -> None:
        if self.next is not None and self.next[0] <= now_ms:
            self.next[1]()
            self.next = next(self._happenings, None)


def live(world: World, machines: list[Machine], until_ms: int, coming: Coming) -> None:
    """Let time pass until `until_ms`."""
    while True:
        for machine in machines:
            machine.look()
        times_ms = [machine.next_look_ms() for machine in machines]
        times_ms += [time_ms for time_ms in (world.next_answer_ms, coming.next and coming.next[0]) if time_ms]
        if min(times_ms) >= until_ms:
            world.go_to(until_ms)
            return
        world.go_to(min(times_ms))
        coming.happen(world.now_ms)


def source_text() -> str:
    """What a coding agent reads all day."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "\n".join(path.read_text("utf-8", "replace") for path in sorted(folder.glob("*.py")))


def turn_of(size_bytes: int, name: str, text: str, dice: random.Random) -> list[Body]:
    """Records as a turn with tool calls has them: what a tool put out stands in its record, and twice in the next."""
    bodies = []
    pieces = max(1, size_bytes // 150_000)
    for n in range(pieces):
        start = dice.randrange(len(text) - 50_000)
        piece = text[start : start + size_bytes // pieces // 3].encode()
        for part, body in (("tool", piece), ("call", piece + piece)):
            bodies.append(Body(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {part} {n}"), body))
    return bodies


@dataclass(frozen=True)
class Told:
    """What became of an outage."""

    requests: int
    """During the outage."""
    states: dict[str, int]
    out_of_order: int
    """Turns that went before an older one of their session: at most the probe that found the outage over."""
    spool_bytes: int
    statements: tuple[int, int]
    """SQL statements of one look in which nothing happens: early in the outage, and at its end."""
    memory_growth_kb: int
    """Of this process, from the first quarter of the outage to its end."""


def outage(spool: Path, answers: list[Answer], *, days: float, turns: int, turn_bytes: int, seed: int = 1) -> Told:
    """An hour of calm, `days` of outage in which `turns` come, then calm again until all is delivered.

    With several `answers` the outage changes its face every now and then.
    """
    dice = random.Random(seed)  # noqa: S311 - the scenario
    text = source_text()
    receiver = Receiver()
    world = World(receiver)
    with closing(Machine(spool, world, seed)) as machine:
        begin_ms = world.now_ms + HOUR_MS
        end_ms = begin_ms + int(days * DAY_MS)
        counts: list[int] = []

        def happenings() -> Iterator[Happening]:
            for n in range(turns):
                at_ms = begin_ms + (end_ms - begin_ms) * n // turns
                session, turn = f"ses_{n // 5 - n % 2}", f"msg_{n}"
                yield at_ms - 2, partial(setattr, receiver, "answer", dice.choice(answers))
                bodies = turn_of(turn_bytes, turn, text, dice)
                yield at_ms, partial(machine.capture, session, turn, bodies)

        machine.capture("ses_calm", "msg_calm", turn_of(turn_bytes, "calm", text, dice))
        live(world, [machine], begin_ms - SECOND_MS, Coming())
        before = receiver.requests
        coming = Coming(happenings())
        live(world, [machine], begin_ms + (end_ms - begin_ms) // 4, coming)
        memory_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counts.append(_statements(machine))
        live(world, [machine], end_ms, coming)
        growth_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kb
        counts.append(_statements(machine))
        requests = receiver.requests - before
        size = sum(path.stat().st_size for path in spool.rglob("*") if path.is_file())
        receiver.answer = accepted
        live(world, [machine], end_ms + HOUR_MS, Coming())
        rows = machine.db.execute("select state, count(*) as jobs from job group by state").fetchall()
        states = {row["state"]: row["jobs"] for row in rows}
        return Told(requests, states, machine.out_of_order(), size, (counts[0], counts[1]), growth_kb)


def _statements(machine: Machine) -> int:
    """Of one look a moment after another: only what the poller asks each time."""
    machine.look()
    seen: list[str] = []
    machine.db.set_trace_callback(seen.append)
    machine.look()
    machine.db.set_trace_callback(None)
    return len(seen)


def rotated_key(spool: Path, *, turns: int, turn_bytes: int) -> Told:
    """A key is refused for a day; then its project gets another one."""
    dice = random.Random(2)  # noqa: S311 - the scenario
    text = source_text()
    world = World(Receiver(refused))
    with closing(Machine(spool, world, 2)) as machine:
        begin_ms = world.now_ms

        def happenings() -> Iterator[Happening]:
            for n in range(turns):
                bodies = turn_of(turn_bytes, f"msg_{n}", text, dice)
                yield begin_ms + DAY_MS * n // turns, partial(machine.capture, "ses_1", f"msg_{n}", bodies)

        live(world, [machine], begin_ms + DAY_MS, Coming(happenings()))
        requests = world.receiver.requests
        world.receiver.answer = accepted
        machine.use_key("key-b")
        machine.capture("ses_1", "msg_last", turn_of(turn_bytes, "last", text, dice))
        live(world, [machine], begin_ms + DAY_MS + HOUR_MS, Coming())
        rows = machine.db.execute("select state, count(*) as jobs from job group by state").fetchall()
        states = {row["state"]: row["jobs"] for row in rows}
        return Told(requests, states, machine.out_of_order(), 0, (0, 0), 0)


@dataclass(frozen=True)
class BesideOneThatRefuses:
    """What became of turns for two destinations of which one refuses for a day."""

    delays_ms: list[int]
    """Of the one that is well: from capture to delivery, in order."""
    states: dict[tuple[str, str], int]
    """By kind, in the end."""
    charged: int
    """Jobs of the one that refused that were held responsible."""
    requests: int
    """To it, while it refused."""


def beside(spool: Path, *, turns: int, turn_bytes: int, is_there: bool = True) -> BesideOneThatRefuses:
    """`is_there` is false: the other destination alone, to compare with."""
    dice = random.Random(4)  # noqa: S311 - the scenario
    text = source_text()
    world, refusing = World(Receiver()), Receiver(refused)
    with ExitStack() as opened:
        well = opened.enter_context(closing(Machine(spool, world, 4)))
        machines = [well]
        if is_there:
            machines.append(opened.enter_context(closing(Machine(spool, world, 5, "key-b", beside=refusing))))
        begin_ms = world.now_ms

        def come(n: int) -> None:
            bodies = turn_of(turn_bytes, f"msg_{n}", text, dice)
            for machine in machines:
                machine.capture(f"ses_{n // 5}", f"msg_{n}", bodies)

        coming = Coming((begin_ms + DAY_MS * n // turns, partial(come, n)) for n in range(turns))
        live(world, machines, begin_ms + DAY_MS, coming)
        requests = refusing.requests
        (charged,) = well.db.execute(
            "select count(*) from job where destination_id <> ? and failures > 0", (well.destination.id,)
        ).fetchone()
        refusing.answer = accepted
        live(world, machines, begin_ms + DAY_MS + 3 * HOUR_MS, Coming())
        delays_ms = [
            row["delay_ms"]
            for row in well.db.execute(
                "select finished_ms - enqueued_ms as delay_ms from job where destination_id = ? and state = 'delivered'"
                " order by id",
                (well.destination.id,),
            )
        ]
        rows = well.db.execute(
            "select d.kind, j.state, count(*) as jobs from job j join destination d on d.id = j.destination_id"
            " group by d.kind, j.state"
        ).fetchall()
        states = {(row["kind"], row["state"]): row["jobs"] for row in rows}
        return BesideOneThatRefuses(delays_ms, states, charged, requests)


def herd(folder: Path, machines: int, turns: int, *, is_away: bool) -> tuple[int, int]:
    """(most requests in one second, most in flight) while so many spools deliver what has waited.

    Without the outage the same jobs are captured at once, and every thread of every worker is at it.
    """
    receiver = Receiver(unreached if is_away else accepted)
    world = World(receiver)
    with ExitStack() as opened:
        spools = [opened.enter_context(closing(Machine(folder / str(n), world, n))) for n in range(machines)]
        for machine in spools:
            for n in range(turns):
                bodies = [Body(uuid.uuid5(uuid.NAMESPACE_OID, f"{n} {part}"), b"x") for part in range(3)]
                machine.capture(f"ses_{n}", "msg", bodies)
        if is_away:
            live(world, spools, world.now_ms + HOUR_MS, Coming())
            receiver.answer = accepted
            receiver.by_second.clear()
            receiver.in_flight_max = 0
        live(world, spools, world.now_ms + HOUR_MS, Coming())
        assert all(counts.counts(machine.db).pending == 0 for machine in spools), "an hour was not enough"
        return max(receiver.by_second.values()), receiver.in_flight_max


def remember(path: Path, session: str, turn: str, at_ms: int, output: str) -> None:
    """Have OpenCode's store hold one more turn: a question, a tool call and an answer."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("pragma synchronous = off")
        if not db.execute("select 1 from sqlite_master").fetchone():
            db.executescript(TABLES)
            db.execute("create index message_session on message (session_id)")
            db.execute("create index part_message on part (message_id)")
        facts = (session, "project", None, "slug", "/home/dev/project", "a title", "1.18.33", at_ms, at_ms, None)
        db.execute("insert or ignore into session values (?,?,?,?,?,?,?,?,?,?)", facts)
        called = tool(f"prt_{turn}_tool", output=output, time={"start": at_ms + 20, "end": at_ms + 30})
        asked = user(turn, at_ms, text("go on", f"prt_{turn}_text"))
        answered = assistant(f"{turn}_answer", at_ms + 10, called, text("done", f"prt_{turn}_z"), parent=turn)
        for one in (asked, answered):
            name, created_ms = one["info"]["id"], one["info"]["time"]["created"]
            row = (name, session, created_ms, created_ms, json.dumps(one["info"]))
            db.execute("insert into message values (?,?,?,?,?)", row)
            for part in one["parts"]:
                ids = (part["id"], name, session, created_ms, created_ms)
                db.execute("insert into part values (?,?,?,?,?,?)", (*ids, json.dumps(part)))


@dataclass(frozen=True)
class OutageWithoutRoom:
    """What became of an outage for which there was too little room."""

    requests: int
    """During the outage."""
    captured_bytes: int
    """Compressed, of all bodies: what there would have to be room for."""
    held_bytes_max: int
    emptied_max: int
    """Jobs that waited without bodies."""
    states: dict[str, int]
    keys_are_same: bool
    records: int
    """At the receiver."""
    each_stored_once: bool


def little_room(
    spool: Path, *, days: float, turns: int, turn_bytes: int, bytes_max: int, seed: int = 3
) -> OutageWithoutRoom:
    """An outage in which `turns` come, a third of them in three long sessions, the others in sessions of five."""
    dice = random.Random(seed)  # noqa: S311 - the scenario
    source = source_text()
    world = World(Receiver(unreached))
    with closing(Machine(spool, world, seed)) as machine:
        machine.bytes_max, machine.age_ms_max, machine.prune_ms = bytes_max, int(2 * days * DAY_MS), 5 * MINUTE_MS
        begin_ms, end_ms = world.now_ms, world.now_ms + int(days * DAY_MS)
        keys: list[str] = []
        held: list[int] = []
        captured: list[int] = []
        evicted: list[int] = []

        def come(n: int) -> None:
            session = f"ses_long_{n // 3 % 3}" if n % 3 == 0 else f"ses_{n // 7}"
            start = dice.randrange(len(source) - turn_bytes)
            remember(machine.store, session, f"msg_{n:05}", world.now_ms, source[start : start + turn_bytes])
            transcript = Store(machine.store).turn(session, f"msg_{n:05}")
            assert transcript is not None
            room, machine.bytes_max = machine.bytes_max, 1 << 40
            before = eviction.held_bytes(machine.db)
            keys.extend(machine.take(transcript))
            captured.append(eviction.held_bytes(machine.db) - before)
            machine.bytes_max = room
            machine.room.make(machine.db, world.now_ms, room)
            held.append(eviction.held_bytes(machine.db))
            evicted.append(eviction.without_bodies(machine.db, machine.destination.id))

        coming = Coming((begin_ms + (end_ms - begin_ms) * n // turns, partial(come, n)) for n in range(turns))
        live(world, [machine], end_ms, coming)
        requests = world.receiver.requests
        world.receiver.answer = accepted
        live(world, [machine], end_ms + 6 * HOUR_MS, coming)
        rows = machine.db.execute("select state, count(*) as jobs from job group by state").fetchall()
        found = {row["key"] for row in machine.db.execute("select key from job where state = 'delivered'")}
        stored = [times for times in world.accepted.values() if times]
        return OutageWithoutRoom(
            requests=requests,
            captured_bytes=sum(captured),
            held_bytes_max=max(held),
            emptied_max=max(evicted),
            states={row["state"]: row["jobs"] for row in rows},
            keys_are_same=found == set(keys),
            records=len(stored),
            each_stored_once=set(stored) == {1},
        )


def main() -> int:
    print(f"SQLite {sqlite3.sqlite_version}")
    failed = False
    faces: dict[str, list[Answer]] = {
        "connection refused": [unreached],
        "503": [broken],
        "429": [limited],
        "changing": [unreached, broken, limited],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, answers in faces.items():
            told = outage(Path(folder) / name, answers, days=4, turns=300, turn_bytes=1_000_000)
            is_well = told.states == {"delivered": 301} and told.out_of_order <= 1 and told.requests < 1_500
            is_flat = told.statements[0] == told.statements[1] and told.memory_growth_kb < 20_000
            failed = failed or not (is_well and is_flat)
            print(f"4 days, {name}: {'well' if is_well and is_flat else 'FAILED'}: {told}")
        told = rotated_key(Path(folder) / "key", turns=75, turn_bytes=1_000_000)
        is_well = told.states == {"delivered": 76} and told.out_of_order <= 1
        failed = failed or not is_well
        print(f"401 for a day, then a new key: {'well' if is_well else 'FAILED'}: {told}")
        steady = herd(Path(folder) / "steady", 20, 60, is_away=False)
        after = herd(Path(folder) / "after", 20, 60, is_away=True)
        is_well = after[0] < 2 * steady[0] and after[1] < 2 * steady[1]
        failed = failed or not is_well
        print(f"20 spools, most requests a second and most in flight: steady {steady}, after an outage {after}")
        roomy = little_room(Path(folder) / "room", days=30, turns=3_000, turn_bytes=16_000, bytes_max=5_000_000)
        is_well = set(roomy.states) == {"delivered"} and roomy.keys_are_same and roomy.each_stored_once
        is_well = is_well and roomy.held_bytes_max <= 5_000_000 < roomy.captured_bytes and roomy.requests < 12_000
        failed = failed or not is_well
        print(f"30 days, 3,000 turns, 5 MB of room: {'well' if is_well else 'FAILED'}: {roomy}")
        alone = beside(Path(folder) / "alone", turns=1_440, turn_bytes=3_000, is_there=False)
        told_beside = beside(Path(folder) / "beside", turns=1_440, turn_bytes=3_000)
        is_well = alone.delays_ms == told_beside.delays_ms and told_beside.charged == 0
        is_well = is_well and set(told_beside.states) == {("helicone", "delivered"), ("otlp", "delivered")}
        failed = failed or not is_well
        longest = (max(alone.delays_ms), max(told_beside.delays_ms))
        print(
            f"1,440 turns beside a destination that refuses for a day: {'well' if is_well else 'FAILED'}: the longest"
            f" delay alone and beside it {longest} ms, {told_beside.requests} requests to it, {told_beside.states}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

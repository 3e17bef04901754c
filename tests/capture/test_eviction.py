"""A full spool: bodies that OpenCode's store holds are given up, and are posted later as if they had been kept."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.capture.enqueue import MARK_DIGITS, Place, Request, enqueue
from app.capture.eviction import AGAIN_MS, PATIENCE_MS, Eviction, Freed
from app.capture.recapture import Recapturer
from app.database.connection import Ledger
from app.database.open import open_ledger
from app.delivery.deliver import OTHER_TEXT
from app.ledger import (
    adoption,
    claims,
    confirmations,
    counts,
    dead_letters,
    destinations,
    eviction,
    job,
    maintenance,
    pruning,
)
from app.ledger.dead_letters import Choice
from app.ledger.job import Claim, FailedAttempt
from app.operations.dead_letters import list_dropped, open_letters, what_to_do
from app.operations.status import read_destinations, waiting
from app.privacy.policy import Hold
from app.privacy.redact import REDACTED, Redaction
from app.privacy.terms import Capture
from app.settings.model import Settings
from app.sources.opencode.store import Store, store_file
from app.transcript.parse import parse
from tests.support.ledger_bench import accepted
from tests.support.processes import PROJECT, Station, hook, worker
from tests.support.recorded import export, exported
from tests.support.servers import nobody, receiving
from tests.support.snapshots import Fields, assistant, entry, snapshot, text, unfinished, user
from tests.support.waiting import wait_until
from tests.system.test_policy_sweep import CANARY, Bench, configure, remember, talk


class EvictionBench(Bench):
    """With a store to rely on."""

    def make_room(self, bytes_max: int = 0) -> Freed:
        return Eviction(store_file(self.environ)).make(self.db, 2_000, bytes_max)

    def keep(self, wanted: Fields) -> None:
        """OpenCode has it, and a hook captures it."""
        remember(self.environ, wanted)
        transcript = Store(store_file(self.environ)).transcript(wanted["root"])
        assert transcript is not None
        found = self.policy_check.capture(self.db, "")
        assert not isinstance(found, Hold)
        enqueue(self.db, transcript, found, Place(self.destination, ""), now_ms=1_000, wake=lambda _: None)

    def forget(self, session: str = "ses_root", turn: str | None = None) -> None:
        """Somebody deletes it in OpenCode."""
        with closing(sqlite3.connect(store_file(self.environ))) as db, db:
            if turn is None:
                db.execute("delete from session where id = ?", (session,))
            db.execute("delete from message where ? is null or id = ? or data ->> 'parentID' = ?", (turn, turn, turn))

    def capture_of(self, folder: str) -> Capture | None:
        found = self.policy_check.capture(self.db, folder)
        return found if isinstance(found, Capture) else None

    def refill(self, bytes_max: int = 1 << 20) -> int:
        """What a hook of the project does. How many sessions it tried."""
        done = 0
        while self.recapturer.refill(
            self.db, self.capture_of, folders=("",), bytes_max=bytes_max, now_ms=2_500, wake=lambda _: None
        ):
            done += 1
        return done

    def release(self) -> None:
        """What is held may be tried again now."""
        self.db.execute("update job set due_ms = 3000, hold_reason = null where state = 'pending'")

    def finish(self, claimed: Claim) -> None:
        for body in claims.unacknowledged(self.db, claimed):
            claims.acknowledge(
                self.db, claimed, [accepted(self.db, claimed, body, 2_000)], now_ms=2_000, lease_ms=60_000
            )
        assert claims.complete(self.db, claimed, 2_000)

    @property
    def bodies(self) -> list[bytes]:
        """Of all jobs, in order."""
        jobs = self.db.execute("select id, key from job order by id").fetchall()
        return [body.body for row in jobs for body in job.bodies(self.db, row["id"], row["key"])]

    @property
    def keys(self) -> list[str]:
        return [row["key"] for row in self.db.execute("select key from job order by id")]

    @property
    def why(self) -> list[str]:
        return [line.partition(": ")[2] or line for line in self.told]

    @property
    def told(self) -> tuple[str, ...]:
        return waiting(read_destinations(self.db, Settings(), 3_000), (), 3_000)


@pytest.fixture
def bench(db: Ledger, tmp_path: Path) -> EvictionBench:
    db.execute("pragma synchronous = off")
    return EvictionBench(db, tmp_path)


def test_bodies_go_first_and_are_posted_as_if_they_had_been_kept(bench: EvictionBench) -> None:
    bench.keep(talk(3))
    before, keys = bench.bodies, bench.keys
    assert bench.make_room() == Freed(evicted=4, dropped=0)
    assert eviction.held_bytes(bench.db) == 0
    assert bench.states == ["pending"] * 4
    [one, *_] = read_destinations(bench.db, Settings(), 3_000)[1:]
    assert one.without_text == 4
    assert "of them 4 jobs without text, for want of room; OpenCode's store has it" in bench.told
    bench.deliver()
    assert bench.states == ["delivered"] * 4
    assert (bench.posted, bench.keys) == (before, keys)
    assert not [line for line in bench.told if "without text" in line]


@pytest.mark.parametrize("name", exported())
def test_every_recording_comes_out_of_the_store_as_it_went_in(bench: EvictionBench, name: str) -> None:
    bench.keep(export(name))
    before = bench.bodies
    bench.make_room()
    bench.deliver()
    assert set(bench.states) == {"delivered"}
    assert bench.posted == before


def test_a_turn_that_was_interrupted_is_made_again_in_that_form(bench: EvictionBench) -> None:
    asked, answered = user("msg_0a", 1_000_100), unfinished("msg_0b", 1_000_110, text("half"), parentID="msg_0a")
    later = talk(2)["sessions"][0]["messages"][2:]
    bench.keep(snapshot(entry(asked, answered, *later, directory=PROJECT)))
    before = bench.bodies
    assert len(before) > 4
    bench.make_room()
    bench.deliver()
    assert bench.states == ["delivered"] * 3
    assert bench.posted == before


def test_no_more_is_given_up_than_there_must_be_and_the_oldest_first(bench: EvictionBench) -> None:
    bench.keep(talk(4))
    sizes = [row[0] for row in bench.db.execute("select body_bytes from job order by id")]
    assert bench.make_room(sum(sizes)) == Freed(0, 0)
    assert bench.make_room(sum(sizes) - sizes[0] - 1) == Freed(2, 0)
    assert [row[0] for row in bench.db.execute("select body_bytes from job order by id")] == [0, 0, *sizes[2:]]


def test_only_what_the_store_does_not_hold_is_dropped(bench: EvictionBench) -> None:
    bench.capture(talk(4))
    remember(bench.environ, talk(2))
    assert bench.make_room() == Freed(evicted=3, dropped=2)
    assert bench.states == ["pending"] * 3 + ["dropped (size)"] * 2


def test_without_a_store_the_oldest_are_dropped(bench: EvictionBench) -> None:
    bench.capture(talk(2))
    assert bench.make_room() == Freed(0, 3)


def test_a_store_that_cannot_be_read_for_a_moment_costs_nothing(bench: EvictionBench) -> None:
    bench.capture(talk(2))
    store_file(bench.environ).parent.mkdir(parents=True)
    store_file(bench.environ).write_bytes(b"not yet a database, however long it is" * 100)
    room = Eviction(store_file(bench.environ))
    for now_ms in (2_000, 2_000 + PATIENCE_MS - 1):
        assert room.make(bench.db, now_ms, 0) == Freed(0, 0)
    # It was tried just now, and each try may wait for OpenCode.
    assert room.make(bench.db, 2_000 + PATIENCE_MS, 0) == Freed(0, 0)
    assert room.make(bench.db, 2_000 + PATIENCE_MS + AGAIN_MS, 0) == Freed(0, 3)


def test_a_clock_that_was_set_back_keeps_nobody_from_a_store_that_can_be_read_again(bench: EvictionBench) -> None:
    bench.keep(talk(2))
    room = Eviction(store_file(bench.environ))
    with unreadable(bench):
        assert room.make(bench.db, 3 * PATIENCE_MS, 0) == Freed(0, 0)
    assert room.make(bench.db, 2_000, 0) == Freed(3, 0)


def test_patience_begins_anew_when_the_clock_was_set_back(bench: EvictionBench) -> None:
    bench.keep(talk(2))
    room = Eviction(store_file(bench.environ))
    with unreadable(bench):
        for now_ms in (3 * PATIENCE_MS, 2_000):
            assert room.make(bench.db, now_ms, 0) == Freed(0, 0)
        assert room.make(bench.db, 2_000 + PATIENCE_MS, 0) == Freed(0, 3)


def test_patience_begins_anew_when_the_store_was_read_meanwhile(bench: EvictionBench) -> None:
    bench.keep(talk(2))
    room = Eviction(store_file(bench.environ))
    with unreadable(bench):
        assert room.make(bench.db, 2_000, 0) == Freed(0, 0)
    assert room.make(bench.db, 2_000 + AGAIN_MS, eviction.held_bytes(bench.db) - 1) == Freed(1, 0)
    with unreadable(bench):
        assert room.make(bench.db, 2_000 + 2 * PATIENCE_MS, 0) == Freed(0, 0)


def test_nothing_is_dropped_before_the_store_was_asked_about_all(
    bench: EvictionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.capture.eviction.ASKED_MAX", 1)
    bench.capture(talk(1))
    remember(bench.environ, talk(1, id="ses_other"))
    room = Eviction(store_file(bench.environ))
    assert [room.make(bench.db, now_ms, 0) for now_ms in (2_000, 3_000, 4_000)] == [
        Freed(0, 0),
        Freed(0, 2),
        Freed(0, 0),
    ]


@contextmanager
def unreadable(bench: EvictionBench) -> Iterator[None]:
    """OpenCode's store is there, and cannot be read."""
    path = store_file(bench.environ)
    aside = path.rename(path.with_name("aside"))
    path.write_bytes(b"no database, however long it is" * 100)
    yield
    aside.replace(path)


def test_no_more_bodies_go_than_the_bound_asks_for(bench: EvictionBench) -> None:
    bench.keep(talk(3))
    (oldest,) = bench.db.execute("select body_bytes from job order by enqueued_ms, id limit 1").fetchone()
    assert bench.make_room(eviction.held_bytes(bench.db) - oldest) == Freed(1, 0)


def test_one_row_that_cannot_be_read_drops_nothing_of_the_others(bench: EvictionBench) -> None:
    bench.keep(talk(3))
    with closing(sqlite3.connect(store_file(bench.environ))) as db, db:
        db.execute("update message set data = '{' where id = (select max(id) from message)")
    assert bench.make_room().dropped == 0


def test_a_recall_larger_than_the_spool_drops_nothing_else(bench: EvictionBench) -> None:
    bench.capture(talk(2))
    bench.db.execute("update job set is_recall = 1 where id = (select max(id) from job)")
    (largest,) = bench.db.execute("select body_bytes from job where is_recall").fetchone()
    (others,) = bench.db.execute("select sum(body_bytes) from job where not is_recall").fetchone()
    assert largest > 1
    assert Eviction(store_file(bench.environ)).make(bench.db, 2_000, others) == Freed(0, 0)


def test_the_store_is_not_opened_while_there_is_room(bench: EvictionBench) -> None:
    bench.capture(talk(1))
    store_file(bench.environ).mkdir(parents=True)
    assert bench.make_room(1 << 20) == Freed(0, 0)


def test_what_is_in_flight_keeps_its_bodies(bench: EvictionBench) -> None:
    bench.keep(talk(1))
    key = bench.keys[0]
    assert claims.claim(bench.db, bench.destination, key, worker="w", now_ms=2_000, lease_ms=60_000)
    assert bench.make_room() == Freed(1, 0)
    assert bench.db.execute("select body_bytes > 0 from job where key = ?", (key,)).fetchone()[0]


def test_a_recall_is_neither_given_up_nor_dropped(bench: EvictionBench) -> None:
    """What it says no store says, and what it overwrites must not stay."""
    bench.keep(talk(1))
    bench.db.execute("update job set is_recall = 1, attempted_ms = 2000")
    assert bench.make_room() == Freed(0, 0)
    assert pruning.drop_aged(bench.db, 5_000, 0) == 0
    assert counts.counts(bench.db).body_bytes > 0


# --- what cannot be made again


def test_a_turn_that_is_gone_from_the_store_is_dropped_and_counted(bench: EvictionBench) -> None:
    bench.keep(talk(2))
    bench.make_room()
    bench.forget(turn="msg_1a")
    bench.deliver()
    assert bench.states == ["delivered", "delivered", "dropped (size)"]
    assert counts.counts(bench.db).dropped_by_reason == {"size": 1}
    assert bench.db.execute("select count(*) from job where lease_until_ms is not null").fetchone()[0] == 0


def test_a_store_that_was_made_anew_in_the_same_place_drops_what_it_lacks_and_it_is_said_why(
    bench: EvictionBench,
) -> None:
    bench.keep(talk(1))
    bench.make_room()
    store_file(bench.environ).unlink()
    remember(bench.environ, talk(1, id="ses_other"))
    bench.start_worker()
    bench.deliver()
    assert bench.states == ["dropped (size)"] * 2
    (one, _) = list_dropped(bench.db, 0).letters
    assert "gone from OpenCode's store" in what_to_do(one)


def test_what_a_stricter_policy_took_stays_as_it_is_while_export_is_off(bench: EvictionBench) -> None:
    bench.keep(talk(1))
    bench.db.execute(
        "update job set state = 'dropped', drop_reason = 'policy', due_ms = null, finished_ms = 1, body_bytes = 0"
    )
    found = bench.capture_of("")
    assert found is not None
    off = replace(found, policy=replace(found.policy, mode="off"))
    assert not bench.recapturer.step(bench.db, lambda _: off, now_ms=2_500, wake=lambda _: None)
    assert bench.states == ["dropped (policy)"] * 2
    assert bench.recapturer.step(bench.db, lambda _: found, now_ms=2_500, wake=lambda _: None)
    assert bench.states == ["pending"] * 2


def test_what_another_store_held_is_not_dropped_by_who_reads_this_one(bench: EvictionBench) -> None:
    bench.keep(talk(1))
    bench.make_room()
    bench.environ["OPENCODE_DB"] = "opencode-other.db"
    remember(bench.environ, talk(1, id="ses_other"))
    bench.start_worker()
    bench.deliver()
    assert (bench.states, bench.posted) == (["pending"] * 2, [])
    assert "another store" in bench.why[0]


def test_a_store_that_is_away_holds_what_it_has(bench: EvictionBench) -> None:
    bench.keep(talk(1))
    bench.make_room()
    store_file(bench.environ).rename(bench.home / "elsewhere")
    bench.deliver()
    assert (bench.states, bench.posted) == (["pending"] * 2, [])
    assert "cannot be read here" in bench.why[0]


def test_text_is_not_posted_by_a_worker_that_does_not_know_the_secrets_of_the_hook(bench: EvictionBench) -> None:
    bench.start_worker(MY_TOKEN=CANARY)
    bench.keep(talk(2))
    before, keys = bench.bodies, bench.keys
    bench.make_room()
    bench.start_worker()
    bench.deliver()
    # The session's own record does not say it.
    assert bench.states == ["delivered", "pending", "pending"]
    assert bench.why[0] == OTHER_TEXT.reason
    assert not counts.sendable(bench.db, bench.destination, 3_000)
    assert CANARY not in bench.wire
    # Its project's hook knows it.
    bench.start_worker(MY_TOKEN=CANARY)
    assert bench.refill(bytes_max=0) == 0
    assert bench.refill() == 1
    bench.start_worker()
    bench.deliver()
    assert (bench.states, bench.keys, bench.posted) == (["delivered"] * 3, keys, before)


def test_a_hook_without_the_secret_that_was_redacted_refills_nothing_of_it(bench: EvictionBench) -> None:
    bench.start_worker(MY_TOKEN=CANARY)
    bench.keep(talk(2))
    before = bench.bodies
    assert not any(CANARY.encode() in body for body in before)
    bench.make_room()
    bench.start_worker()
    bench.deliver()
    assert bench.refill() == 1
    assert eviction.held_bytes(bench.db) == 0
    assert "secrets" in bench.why[0]
    bench.start_worker(MY_TOKEN=CANARY)
    bench.recapturer = Recapturer(store_file(bench.environ), bench.destination, bench.home / "hooks")
    assert bench.refill() == 1
    bench.deliver()
    assert bench.posted == before


def test_a_turn_that_has_changed_is_sent_as_its_newer_version(bench: EvictionBench) -> None:
    bench.keep(talk(2))
    bench.make_room()
    with closing(sqlite3.connect(store_file(bench.environ))) as db, db:
        db.execute("update part set data = replace(data, '0!', '0?!') where message_id = 'msg_0b'")
    bench.deliver()
    assert bench.states == ["delivered", "pending", "delivered"]
    bench.refill()
    bench.deliver()
    assert bench.states == ["delivered"] * 3
    assert f"{CANARY} 0?!" in bench.wire


def test_a_hook_tries_what_it_cannot_refill_once(bench: EvictionBench) -> None:
    bench.start_worker(MY_TOKEN=CANARY)
    bench.keep(talk(1))
    bench.make_room()
    bench.start_worker()
    bench.deliver()
    bench.forget()
    assert bench.refill() == 1
    # Not even when it is there again.
    store_file(bench.environ).unlink()
    remember(bench.environ, talk(1))
    assert bench.refill() == 0
    assert bench.states == ["delivered", "pending"]


# --- rules or secrets became more meanwhile


def stricter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of this program is: it takes out what says `!` as well."""
    before = Redaction.text

    def text(self: Redaction, value: str, hits: Counter[str] | None = None) -> str:
        return before(self, value, hits).replace("!", REDACTED)

    monkeypatch.setattr(Redaction, "text", text)


def test_what_nobody_was_sent_is_sent_as_a_stricter_rule_makes_it(
    bench: EvictionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.keep(talk(2))
    before, keys = bench.bodies, bench.keys
    bench.make_room()
    stricter(monkeypatch)
    bench.deliver()
    assert (bench.states, bench.keys) == (["delivered"] * 3, keys)
    assert len(bench.posted) == len(before)
    assert bench.posted != before
    assert "!" not in bench.wire


def test_what_nobody_was_sent_is_sent_without_a_secret_that_became_known_later(bench: EvictionBench) -> None:
    bench.keep(talk(2))
    assert any(CANARY.encode() in body for body in bench.bodies)
    bench.make_room()
    bench.start_worker(MY_TOKEN=CANARY)
    bench.deliver()
    assert bench.states == ["delivered"] * 3
    assert CANARY not in bench.wire


def test_a_secret_that_was_known_then_is_not_let_out_by_a_stricter_rule(
    bench: EvictionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start_worker(MY_TOKEN=CANARY)
    bench.keep(talk(1))
    bench.make_room()
    stricter(monkeypatch)
    bench.start_worker(MY_TOKEN="another-secret-than-that")
    bench.deliver()
    assert bench.refill() == 1
    bench.deliver()
    assert bench.states == ["delivered", "pending"]
    assert CANARY not in bench.wire
    bench.start_worker(MY_TOKEN=CANARY)
    bench.release()
    bench.deliver()
    assert bench.states == ["delivered"] * 2
    assert CANARY not in bench.wire


@pytest.mark.parametrize("came_to", ["answered", "accepted in part", "ended with its worker"])
def test_what_somebody_may_have_been_sent_keeps_its_bytes(
    bench: EvictionBench, monkeypatch: pytest.MonkeyPatch, came_to: str
) -> None:
    bench.keep(talk(1))
    before = bench.bodies
    (turn,) = bench.keys[1:]
    claimed = claims.claim(bench.db, bench.destination, turn, worker="w", now_ms=2_000, lease_ms=60_000)
    while claimed is not None and claimed.turn == job.SESSION_RECORD:
        bench.finish(claimed)
        claimed = claims.claim(bench.db, bench.destination, turn, worker="w", now_ms=2_000, lease_ms=60_000)
    assert claimed is not None
    match came_to:
        case "answered":
            claims.release(bench.db, claimed, due_ms=2_100, failed=FailedAttempt(2_100, "503: HTML", 503))
        case "accepted in part":
            first = next(claims.unacknowledged(bench.db, claimed))
            claims.acknowledge(
                bench.db, claimed, [accepted(bench.db, claimed, first, 2_000)], now_ms=2_000, lease_ms=60_000
            )
            claims.release(bench.db, claimed, due_ms=2_100)
        case _:
            maintenance.recover(bench.db, 2_100, ["w"])
    bench.make_room()
    stricter(monkeypatch)
    bench.deliver()
    assert (bench.states, bench.posted) == (["delivered", "pending"], [])
    assert bench.refill() == 1
    assert eviction.held_bytes(bench.db) == 0
    monkeypatch.undo()
    bench.release()
    bench.deliver()
    assert bench.states == ["delivered"] * 2
    assert set(bench.posted) <= set(before)


def test_an_attempt_that_did_not_connect_has_sent_nothing(
    bench: EvictionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.keep(talk(1))
    for _ in bench.keys:
        claimed = claims.claim(bench.db, bench.destination, bench.keys[0], worker="w", now_ms=2_000, lease_ms=60_000)
        assert claimed is not None
        failed = FailedAttempt(2_500, "ConnectError: Connection refused")
        claims.release(bench.db, claimed, due_ms=2_500, failed=failed)
    assert bench.states == ["pending"] * 2
    bench.make_room()
    stricter(monkeypatch)
    bench.deliver()
    assert bench.states == ["delivered"] * 2
    assert "!" not in bench.wire


def test_of_a_job_from_before_only_the_hook_of_its_project_may_change_a_byte(
    bench: EvictionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.keep(talk(1))
    bench.make_room()
    bench.db.execute("update job set known_marks = null")
    stricter(monkeypatch)
    bench.deliver()
    assert bench.states == ["delivered", "pending"]
    assert bench.refill() == 1
    bench.deliver()
    assert bench.states == ["delivered"] * 2
    assert "!" not in bench.wire


def test_marks_of_known_values_are_short_and_salted(bench: EvictionBench, tmp_path: Path) -> None:
    bench.start_worker(MY_TOKEN=CANARY)
    bench.keep(talk(1))
    marks = [row["known_marks"] for row in bench.db.execute("select known_marks from job order by id")]
    assert marks[0] == ""
    assert len(marks[1]) == MARK_DIGITS
    with closing(open_ledger(tmp_path / "another")) as db:
        other = EvictionBench(db, tmp_path / "home-of-another")
        other.start_worker(MY_TOKEN=CANARY)
        other.keep(talk(1))
        assert [row["known_marks"] for row in db.execute("select known_marks from job order by id")] != marks


# --- settings change meanwhile


@pytest.mark.parametrize("swept", [True, False])
def test_a_policy_that_was_tightened_meanwhile_lets_nothing_out(bench: EvictionBench, *, swept: bool) -> None:
    bench.keep(talk(1))
    bench.make_room()
    configure(bench.own, redactPatterns=["swordfish"])
    if swept:
        bench.sweep()
        assert bench.states == ["dropped (policy)"] * 2
    bench.deliver()
    assert (bench.posted, bench.states) == ([], ["dropped (policy)"] * 2)


def test_a_policy_that_was_loosened_meanwhile_changes_nothing_about_the_bytes(bench: EvictionBench) -> None:
    configure(bench.own, exportMode="metadata_only", sessionPathPrefix="/before")
    bench.keep(talk(1))
    before = bench.bodies
    bench.make_room()
    configure(bench.own)
    bench.deliver()
    assert (bench.states, bench.posted) == (["delivered"] * 2, before)


def test_what_a_pattern_that_is_gone_had_redacted_waits_and_is_named(bench: EvictionBench) -> None:
    configure(bench.own, redactPatterns=["swordfish"])
    bench.keep(talk(1))
    bench.make_room()
    configure(bench.own)
    bench.deliver()
    assert bench.refill() == 0
    assert (bench.states, bench.posted) == (["pending"] * 2, [])
    assert bench.why[0].endswith("import of its session queues it anew")
    configure(bench.own, redactPatterns=["swordfish"])
    bench.sweep()
    bench.deliver()
    assert bench.states == ["delivered"] * 2
    assert CANARY not in bench.wire


# --- what else can become of such a job


def test_what_was_delivered_and_not_found_is_sent_again(bench: EvictionBench) -> None:
    bench.keep(talk(1))
    bench.make_room()
    bench.confirm_ms = 3_000
    bench.deliver()
    sent = list(bench.posted)
    due = confirmations.due_for_confirmation(bench.db, bench.destination, 3_000, 10)
    assert all(one.body_bytes for one in due)
    assert all(one.start_ms for one in due)
    assert all(confirmations.send_again(bench.db, one, 3_000) for one in due)
    bench.deliver()
    assert bench.posted == sent * 2
    due = confirmations.due_for_confirmation(bench.db, bench.destination, 3_000, 10)
    assert all(confirmations.confirmed(bench.db, one, 3_000, has_body=True) for one in due)
    assert bench.db.execute("select count(*) from record").fetchone()[0] == 0


def test_a_dead_letter_without_bodies_says_so_and_can_be_retried(bench: EvictionBench) -> None:
    bench.keep(talk(1))
    before = bench.bodies
    bench.verdict = "permanent"
    bench.deliver()
    assert bench.make_room() == Freed(2, 0)
    [shown] = open_letters(bench.db, bench.keys[1], with_bodies=True)
    assert (shown.bodies, shown.letter.records) == ((), 2)
    assert "given up for want of room" in shown.problem
    bench.verdict = "accepted"
    bench.posted.clear()
    assert len(dead_letters.retry_dead(bench.db, Choice(), 2_500)) == 2
    bench.deliver()
    assert (bench.states, bench.posted) == (["delivered"] * 2, before)


def test_bodies_that_were_lost_are_not_taken_for_given_up(bench: EvictionBench) -> None:
    bench.keep(talk(1))
    bench.db.execute("delete from bundle")
    bench.deliver()
    assert bench.states == ["dead"] * 2
    assert "damaged" in counts.errors(bench.db, bench.destination)[0][1]


def test_a_job_without_bodies_goes_along_to_another_destination(bench: EvictionBench) -> None:
    bench.keep(talk(2))
    before = bench.bodies
    bench.make_room()
    another = destinations.destination(bench.db, "https://example.invalid", "another", 0).id
    found = bench.policy_check.capture(bench.db, "")
    assert not isinstance(found, Hold)
    # It knows the session, so what waits moves job by job.
    nothing, nobody = Request(only=()), Place(another, "")
    enqueue(bench.db, parse(talk(1)), found, nobody, now_ms=1_000, wake=lambda _: None, request=nothing)
    adoption.adopt(bench.db, bench.destination, another, now_ms=2_000)
    bench.destination = another
    bench.start_worker()
    bench.deliver()
    assert bench.states == ["delivered"] * 3
    assert bench.posted == before


# --- processes


def long_talk(turns: int) -> Fields:
    """Turns whose text does not become small."""
    messages = []
    for turn in range(turns):
        at_ms = 1_000_100 + 1_000 * turn
        words = " ".join(str((turn + 1) * n * n) for n in range(2_000))
        messages.append(user(f"msg_{turn:02}a", at_ms, text(words, f"prt_{turn}a")))
        messages.append(assistant(f"msg_{turn:02}b", at_ms + 10, text("yes", f"prt_{turn}b"), parent=f"msg_{turn:02}a"))
    return snapshot(entry(*messages, directory=PROJECT))


@pytest.mark.slow
def test_a_small_spool_loses_nothing_while_nobody_listens(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with nobody() as url:
        port = urlsplit(url).port or 0
    variables = {"OPENCODE_HELICONE_RETRY_BASE_DELAY": "20", "OPENCODE_HELICONE_MAX_SPOOL_SIZE": "20000"}
    station = Station(tmp_path / "home", url, variables=variables)
    wanted = long_talk(10)
    with hook(station) as process:
        process.show(wanted)
        wait_until(lambda: station.counts().pending == 11)
        process.end()
    assert station.counts().body_bytes <= 20_000
    with station.ledger() as db:
        keys = counts.pending_keys(db)
        assert 0 < eviction.without_bodies(db, 1) < 11
    assert "no room (maxSpoolSize)" in station.text("hook.log")
    with receiving(tmp_path / "receiver" / "store.db", port=port) as receiver, worker(station):
        wait_until(lambda: station.delivered(11))
        assert len(receiver.rows()) == 1 + 2 * 10
    with station.ledger() as db:
        assert {row["key"] for row in db.execute("select key from job")} == keys

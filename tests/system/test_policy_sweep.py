"""A tightened policy reaches what waits: no POST carries bytes that were made under a looser one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.capture.enqueue import Place, enqueue
from app.capture.recapture import Recapturer
from app.database.connection import Ledger
from app.delivery.backoff import RetryPolicy
from app.delivery.deliver import DeliveryContext, deliver
from app.delivery.policy_check import PolicyCheck
from app.delivery.policy_sweep import PolicySweep
from app.exporters.outcome import Kind, Outcome
from app.ledger import counts, destinations, folders, job, maintenance, policy_enforcement
from app.ledger.eviction import Recaptured
from app.ledger.job import Body, Claim
from app.operations.status import read_destinations, waiting
from app.privacy.policy import Hold, Permit
from app.runtime.liveness import present
from app.settings.lookup import Sources
from app.sources.opencode.store import store_file
from app.transcript.parse import parse
from tests.support.processes import PROJECT, Station, hook, worker
from tests.support.servers import Exchange, nobody, ok, receiving, request_id_of, scripted, whole
from tests.support.snapshots import CREATED_MS, Fields, assistant, entry, snapshot, text, tool, user
from tests.support.stores import put
from tests.support.waiting import wait_until

CANARY = "swordfish-4711"
TURNS = 5
JOBS = TURNS + 1
"""The session has one, too."""


def talk(turns: int = TURNS, **info: object) -> Fields:
    """A session whose every turn says the canary."""
    messages = []
    for turn in range(turns):
        at_ms = 1_000_100 + 1_000 * turn
        asked, answered = f"msg_{turn}a", f"msg_{turn}b"
        messages.append(user(asked, at_ms, text(f"{CANARY} {turn}?", f"prt_{asked}")))
        messages.append(assistant(answered, at_ms + 10, text(f"{CANARY} {turn}!", f"prt_{answered}"), parent=asked))
    return snapshot(entry(*messages, directory=PROJECT, **info))


def configure(own: Path, **options: object) -> None:
    """Write config.toml as an editor does: under another name first."""
    own.mkdir(parents=True, exist_ok=True)
    draft = own / "config.toml~"
    draft.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items()))
    draft.rename(own / "config.toml")


def own_folder(station: Station) -> Path:
    return station.home / "config" / "opencode-helicone"


def remember(environ: dict[str, str], wanted: Fields) -> None:
    """Have OpenCode's own store hold the session."""
    put(store_file(environ), wanted)


# --- processes


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "", variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "20"})


def dropped(station: Station) -> int:
    return station.counts().dropped_by_reason.get("policy", 0)


def test_a_stricter_mode_and_a_new_pattern_reach_what_waits_while_the_worker_runs(
    station: Station, tmp_path: Path
) -> None:
    with nobody() as url:
        port = urlsplit(url).port or 0
    station = replace(station, endpoint=url)
    with hook(station) as first:
        first.show(talk())
        wait_until(lambda: station.counts().pending == JOBS)
        first.end()
    with worker(station):
        wait_until(lambda: station.counts().in_flight or station.counts().retrying or _is_paused(station))
        with hook(station) as second:
            # OpenCode is started anew with a pattern among the plugin's options.
            second.notice("ses_root", "busy", options={"redactPatterns": ["swordfish-\\d+"]})
            wait_until(lambda: _anew(station, "full", 1))
            second.end()
        configure(own_folder(station), exportMode="metadata_only")
        wait_until(lambda: _anew(station, "metadata_only", 0))
        with receiving(tmp_path / "receiver" / "store.db", port=port) as receiver:
            wait_until(lambda: station.delivered(JOBS))
            wire = receiver.wire()
            assert len(receiver.rows()) == 1 + 2 * TURNS
    assert b"swordfish" not in wire
    assert b"[REDACTED]" not in wire
    assert b"hello" not in wire


def _is_paused(station: Station) -> bool:
    with station.ledger() as db:
        return any(one.pause_reason for one in destinations.destinations(db))


def _anew(station: Station, mode: str, patterns: int) -> bool:
    """Whether all jobs wait that were made under this mode and with so many patterns."""
    with station.ledger() as db:
        row = db.execute(
            "select count(*) from job j join policy p on p.id = j.policy_id where j.state = 'pending'"
            " and p.facts ->> 'mode' = ? and json_array_length(p.facts, '$.patterns') = ?",
            (mode, patterns),
        ).fetchone()
        return bool(row[0] == JOBS)


def test_off_and_enable_false_stop_a_running_worker_before_its_next_post(station: Station) -> None:
    own = own_folder(station)

    def switch_off(exchange: Exchange) -> None:
        exchange.read_body()
        configure(own, exportMode="off")
        exchange.send(whole(200, b"ok", {"helicone-id": request_id_of(exchange.heard.body)}))

    def disable(exchange: Exchange) -> None:
        exchange.read_body()
        with hook(station) as another:
            another.notice("ses_other", "busy", options={"enable": False})
            another.process.wait(300)
        exchange.send(whole(200, b"ok", {"helicone-id": request_id_of(exchange.heard.body)}))

    def held(word: str) -> bool:
        with station.ledger() as db:
            reasons = policy_enforcement.held(db, 1)
        return [jobs for reason, jobs in reasons if word in reason] == [1]

    # The session's own record, then the three of its turn.
    with scripted(ok(), switch_off, disable, ok()) as server:
        station = replace(station, endpoint=f"{server.url}/custom/v1/log")
        with hook(station) as process:
            process.show(snapshot(entry(user(), assistant("msg_2", CREATED_MS + 20, text(), tool()))))
            wait_until(lambda: station.counts().pending == 2)
            process.end()
        with worker(station):
            wait_until(lambda: held("export mode is off"))
            assert len(server.requests) == 2
            configure(own)
            wait_until(lambda: held("enable is false"))
            assert len(server.requests) == 3
            assert not present(station.spool / "hooks")
            with hook(station) as process:
                process.notice("ses_root", "busy")
                wait_until(lambda: station.delivered(2))
                process.end()
        assert len(server.requests) == 4


# --- one process, real files


@dataclass
class Bench:
    """What a worker does, step by step: its permits, its sweep, its deliveries."""

    db: Ledger
    home: Path
    posted: list[bytes] = field(default_factory=list)
    verdict: Kind = "accepted"
    confirm_ms: int | None = None

    def __post_init__(self) -> None:
        self.environ = {"HOME": str(self.home), "XDG_DATA_HOME": str(self.home / "data")}
        self.own = self.home / "config"
        self.destination = destinations.destination(self.db, "https://example.invalid", "fingerprint", 0).id
        self.start_worker()

    def start_worker(self, **variables: str) -> None:
        self.policy_check = PolicyCheck(Sources({**self.environ, **variables}, Path("/"), self.own))
        self.recapturer = Recapturer(store_file(self.environ), self.destination, self.home / "hooks")
        self.policy_sweep = PolicySweep(self.policy_check, self.recapturer, self.destination, lambda _: None)

    def record(self, folder: str = "", **options: object) -> None:
        """What a hook records when its plugin brings these options."""
        folders.remember_folder(self.db, folder, self.destination, options, 1_000)

    def capture(self, wanted: Fields, folder: str = "") -> None:
        """What a hook does with a snapshot, under the settings in force."""
        found = self.policy_check.capture(self.db, folder)
        assert not isinstance(found, Hold)
        enqueue(self.db, parse(wanted), found, Place(self.destination, folder), now_ms=1_000, wake=lambda _: None)

    def sweep(self) -> None:
        while self.policy_sweep.look(self.db, 2_000, lambda _: None):
            pass

    def post(self, _: Claim, body: Body) -> Outcome:
        self.posted.append(body.body)
        return Outcome(self.verdict, "as written", 200)

    def permit(self, held: Claim) -> Permit:
        return self.policy_check.permit(self.db, held.folder, held.policy)

    def rebuild(self, held: Claim) -> Recaptured | Hold | None:
        found = self.policy_check.capture(self.db, held.folder)
        return found if isinstance(found, Hold) else self.recapturer.rebuild(self.db, held, found)

    def deliver(self) -> None:
        """All that is due."""
        context = DeliveryContext(
            destination_id=self.destination,
            worker="worker-a",
            policy=RetryPolicy(max_retries=0, base_ms=1, cap_ms=1),
            permit=self.permit,
            post=self.post,
            clock=lambda: 3_000,
            dice=lambda: 0.0,
            stopping=lambda: False,
            when_to_confirm=lambda: self.confirm_ms,
            rebuild=self.rebuild,
        )
        key: str | None = self.db.execute("select key from job where state <> 'superseded' limit 1").fetchone()[0]
        while key is not None:
            key = deliver(self.db, key, context)

    @property
    def states(self) -> list[str]:
        """Of the jobs that are current, in order."""
        rows = self.db.execute("select state, drop_reason from job where state <> 'superseded' order by id").fetchall()
        return [f"{row['state']} ({row['drop_reason']})" if row["drop_reason"] else row["state"] for row in rows]

    @property
    def held_bytes(self) -> int:
        """Of all bodies that the ledger still holds."""
        jobs = self.db.execute("select id, key from job").fetchall()
        return sum(len(body.body) for row in jobs for body in job.bodies(self.db, row["id"], row["key"]))

    @property
    def wire(self) -> str:
        return b"\n".join(self.posted).decode()


LOST = "dropped (policy)"


@pytest.fixture
def bench(db: Ledger, tmp_path: Path) -> Bench:
    db.execute("pragma synchronous = off")
    return Bench(db, tmp_path)


def test_bytes_made_under_a_looser_policy_are_not_posted_even_before_any_sweep(bench: Bench) -> None:
    bench.capture(talk(2))
    configure(bench.own, exportMode="metadata_only")
    bench.deliver()
    assert not bench.posted
    assert bench.states == [LOST] * 3
    assert bench.held_bytes == 0


def test_a_loosened_policy_changes_nothing_about_what_waits(bench: Bench) -> None:
    configure(bench.own, exportMode="metadata_only")
    bench.capture(talk(2))
    before = bench.db.execute("select key, due_ms from job").fetchall()
    configure(bench.own)
    remember(bench.environ, talk(2))
    bench.sweep()
    assert bench.db.execute("select key, due_ms from job").fetchall() == before
    bench.deliver()
    assert bench.states == ["delivered"] * 3
    assert CANARY not in bench.wire


def test_what_waits_of_a_session_that_was_moved_keeps_to_the_folder_where_it_is_now(bench: Bench) -> None:
    bench.capture(talk(1))
    bench.record("there")
    bench.capture(talk(2), "there")
    bench.record("there", exportMode="metadata_only")
    bench.sweep()
    assert bench.states == [LOST] * 3
    bench.deliver()
    assert not bench.posted


def test_neither_an_older_version_nor_a_folder_that_no_hook_saw_moves_a_session(bench: Bench) -> None:
    bench.record("here")
    bench.record("there")
    bench.capture(talk(2), "there")
    older = talk(1)
    older["sessions"][0]["messages"][1]["info"]["time"]["completed"] -= 1
    bench.capture(older, "here")
    bench.capture(talk(3), "of a file")
    bench.record("there", exportMode="metadata_only")
    bench.sweep()
    assert bench.states == [LOST] * 4


def test_a_dead_letter_cannot_be_sent_again_once_it_is_too_loose(bench: Bench) -> None:
    bench.capture(talk(1))
    bench.verdict = "permanent"
    bench.deliver()
    assert bench.states == ["dead"] * 2
    configure(bench.own, exportMode="metadata_only")
    bench.sweep()
    assert bench.states == [LOST] * 2
    assert bench.held_bytes == 0


def test_what_the_store_still_has_is_made_anew_and_what_was_delivered_stays(bench: Bench) -> None:
    bench.capture(talk(1))
    bench.deliver()
    bench.capture(talk(3))
    bench.posted.clear()
    configure(bench.own, exportMode="metadata_only")
    remember(bench.environ, talk(3))
    bench.sweep()
    assert bench.states == ["delivered", "delivered", "pending", "pending"]
    bench.deliver()
    assert bench.states == ["delivered"] * 4
    assert len(bench.posted) == 4
    assert CANARY not in bench.wire


def test_text_is_not_made_anew_by_a_worker_that_does_not_know_the_secrets_of_the_hook(bench: Bench) -> None:
    bench.capture(talk(1))
    remember(bench.environ, talk(1))
    bench.record(redactPatterns=["swordfish"])
    bench.sweep()
    assert bench.states == [LOST] * 2
    # Its project captures it again, with a hook.
    bench.capture(talk(1))
    assert bench.states == ["pending"] * 2


def test_full_then_metadata_only_then_full_again_while_it_waits(bench: Bench) -> None:
    bench.capture(talk(1))
    configure(bench.own, exportMode="metadata_only")
    bench.sweep()
    assert bench.states == [LOST] * 2
    configure(bench.own)
    bench.sweep()
    assert bench.states == [LOST] * 2
    bench.capture(talk(1))
    assert bench.states == ["pending"] * 2
    bench.deliver()
    assert CANARY in bench.wire


def test_what_was_made_anew_stays_strict_until_it_is_captured_again(bench: Bench) -> None:
    bench.capture(talk(1))
    remember(bench.environ, talk(1))
    configure(bench.own, exportMode="metadata_only")
    bench.sweep()
    configure(bench.own)
    bench.sweep()
    bench.deliver()
    assert bench.states == ["delivered"] * 2
    assert CANARY not in bench.wire


@pytest.mark.parametrize(
    ("options", "after"),
    [({}, "delivered"), ({"redactPatterns": ["x"]}, LOST), ({"exportMode": "metadata_only"}, LOST)],
    ids=["full", "a pattern", "metadata_only"],
)
def test_jobs_from_before_policies_were_kept_count_as_full_without_patterns(
    bench: Bench, options: dict[str, object], after: str
) -> None:
    bench.capture(talk(1))
    bench.db.execute("update job set policy_id = null")
    configure(bench.own, **options)
    bench.deliver()
    assert bench.states == [after] * 2


def test_while_export_is_off_jobs_wait_uncharged_and_are_not_claimed(bench: Bench) -> None:
    bench.capture(talk(2))
    configure(bench.own, enable=False)
    bench.sweep()
    assert maintenance.to_wake(bench.db, bench.destination, 3_000, 10) == []
    assert not counts.sendable(bench.db, bench.destination, 3_000)
    told = waiting(read_destinations(bench.db, bench.policy_check._sources.load(), 3_000), (), 3_000)
    assert [line.partition(": ")[2] for line in told] == [f"enable is false (config file {bench.own / 'config.toml'})"]
    assert told[0].startswith("3 jobs for ")
    configure(bench.own)
    bench.sweep()
    assert policy_enforcement.held(bench.db, bench.destination) == []
    bench.deliver()
    assert bench.states == ["delivered"] * 3
    assert bench.db.execute("select sum(failures + setbacks + kills) from job").fetchone()[0] == 0


def test_a_job_held_in_the_hand_of_its_worker_waits_uncharged(bench: Bench) -> None:
    bench.capture(talk(1))
    configure(bench.own, exportMode="off")
    bench.deliver()
    row = bench.db.execute("select * from job order by id").fetchone()
    assert (row["state"], row["lease_until_ms"], row["failures"]) == ("pending", None, 0)
    assert row["due_ms"] > 3_000
    assert bench.db.execute("select count(*) from attempt").fetchone()[0] == 0


@pytest.mark.parametrize("broken", ['exportMode = "of"', "redactPatterns = ['(']", "exportMode ="])
def test_settings_that_cannot_be_used_hold_what_waits_and_drop_nothing(bench: Bench, broken: str) -> None:
    bench.capture(talk(1))
    bench.own.mkdir(parents=True)
    (bench.own / "config.toml").write_text(broken)
    bench.sweep()
    bench.deliver()
    assert (bench.posted, bench.states) == ([], ["pending"] * 2)
    assert "config show" in policy_enforcement.held(bench.db, bench.destination)[0][0]


def test_what_a_newer_hook_recorded_counts_against_the_older_environment_of_a_worker(bench: Bench) -> None:
    bench.capture(talk(1))
    bench.start_worker(OPENCODE_HELICONE_EXPORT_MODE="full", OPENCODE_HELICONE_REDACT_PATTERNS='["a"]')
    bench.record(exportMode="metadata_only", redactPatterns=["b"])
    bench.deliver()
    assert (bench.posted, bench.states) == ([], [LOST] * 2)
    bench.record(redactPatterns=["b"])
    found = bench.policy_check.capture(bench.db, "")
    assert not isinstance(found, Hold)
    assert found.policy.patterns == ("a", "b")


def test_a_job_superseded_while_it_was_asked_for_is_let_go(bench: Bench) -> None:
    bench.capture(talk(1))
    configure(bench.own, exportMode="metadata_only")
    asked = bench.permit

    def newer(held: Claim) -> Permit:
        bench.capture(talk(1))
        return asked(held)

    bench.permit = newer  # type: ignore[method-assign]
    bench.deliver()
    assert bench.states == ["delivered"] * 2
    assert CANARY not in bench.wire
    assert bench.db.execute("select count(*) from job where lease_until_ms is not null").fetchone()[0] == 0

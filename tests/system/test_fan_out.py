"""Two destinations as real processes: a hook, a worker for each, Helicone's receiver and one of OTLP traces."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from app.capture.config import capture
from app.capture.enqueue import Place, Request, enqueue
from app.capture.targets import target
from app.ledger import counts, incidents
from app.ledger.counts import Counts
from app.runtime import clock
from app.runtime.failpoint import VARIABLE
from app.runtime.liveness import present
from app.settings.lookup import Sources, unattended
from app.sources.opencode.store import store_file
from app.transcript.parse import parse
from tests.support import snapshots
from tests.support.enqueuer import growing
from tests.support.lean_receiver import LeanReceiver, lean_receiver
from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.support.processes import PROJECT, Station, end_automatic_workers, hook, worker
from tests.support.recorded import SECRETS, export
from tests.support.servers import api_key
from tests.support.stores import put
from tests.support.waiting import wait_until

TOOLS = "b_tools"
LOGS = 10
"""Of that recording at Helicone; elsewhere it is one trace."""
NAME = "phoenix"


@dataclass(slots=True)
class Site:
    station: Station
    helicone: LeanReceiver
    other: OtlpReceiver
    header: str

    @property
    def sources(self) -> Sources:
        return replace(unattended(self.station.environ), own=self.folder, destination=NAME)

    @property
    def folder(self) -> Path:
        return self.station.home / "config" / "opencode-helicone"

    def name(self, more: str = "", preset: str = "phoenix", endpoint: str | None = None) -> None:
        """Have settings name the other destination, first seen in 1970."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.toml").write_text(
            f'[destinations.{NAME}]\nkind = "otlp"\nendpoint = "{endpoint or self.other.url}"\npreset = "{preset}"\n'
            f'headers = {{ Authorization = "PHOENIX_AUTHORIZATION" }}\n{more}\n',
            "utf-8",
        )
        with self.station.ledger() as db:
            target(db, self.sources.load(), 100_000)

    def counts(self, name: str = NAME) -> Counts:
        with self.station.ledger() as db:
            (row,) = db.execute("select id from destination where ? in (kind, name)", [name])
            return counts.counts(db, row["id"])

    def take(self, snapshot: dict[str, Any], request: Request | None = None) -> None:
        """Put it into the ledger for the other destination, and wake nobody."""
        settings = self.sources.load()
        with self.station.ledger() as db:
            place = Place(target(db, settings, clock.now_ms()).id, "")
            enqueue(
                db,
                parse(snapshot),
                capture(settings, ()),
                place,
                now_ms=clock.now_ms(),
                wake=lambda _: None,
                request=request or Request(),
            )

    @contextmanager
    def worker(self, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """Of the other destination."""
        station = replace(self.station, variables={**self.station.variables, **variables})
        with (
            (station.home / "beside.log").open("ab") as output,
            subprocess.Popen(
                [sys.executable, "-m", "app", "worker", "--destination", NAME],
                env=station.environ,
                cwd=station.home,
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.station.run(*arguments, "--destination", NAME)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "home").mkdir()
    with lean_receiver() as helicone, otlp_receiver() as other:
        header = f"Bearer {api_key('b')}"
        other.headers_wanted = {"Authorization": header}
        station = Station(tmp_path / "home", helicone.url, variables={"PHOENIX_AUTHORIZATION": header})
        made = Site(station, helicone, other, header)
        made.name()
        yield made


def automatic(site: Site) -> Station:
    return replace(site.station, variables={**site.station.variables, "OPENCODE_HELICONE_WORKER": "auto"})


def test_a_hook_has_a_worker_deliver_to_each_destination(site: Site) -> None:
    station = automatic(site)
    try:
        with hook(station) as process:
            process.show(export(TOOLS))
            process.wait_for_ack()
            wait_until(lambda: (site.counts("helicone").delivered, site.counts().delivered) == (2, 1))
            assert len(present(station.spool / "workers")) == 2
            assert process.end() == 0
    finally:
        end_automatic_workers(station)
    assert list(site.helicone.times_sent().values()) == [1] * LOGS
    assert len(site.other.posts) == 1
    assert next(iter(site.other.traces.values())) > 3
    told = json.loads(station.run("status", "--json").stdout)
    assert told["verdict"]["level"] == "ok"
    assert [(one["name"], one["is_meant"], one["current"]) for one in told["destinations"]] == [
        ("", True, True),
        (NAME, True, False),
    ]
    assert told["elsewhere"] == []
    assert site.header not in station.text("worker.log") + station.text("hook.log")


@pytest.mark.parametrize("how", ["away", "refuses"])
def test_one_that_is_not_well_waits_alone_and_gets_all_of_it_in_the_end(site: Site, how: str) -> None:
    if how == "away":
        site.name(endpoint="http://127.0.0.1:9")
    else:
        site.other.headers_wanted = {"Authorization": "Bearer another"}
    with hook(site.station) as process, worker(site.station), site.worker():
        process.show(export(TOOLS))
        process.wait_for_ack()
        wait_until(lambda: site.counts("helicone").delivered == 2)
        wait_until(lambda: is_paused(site))
        process.show(export("a_simple"))
        process.wait_for_ack()
        wait_until(lambda: site.counts("helicone").delivered == 4)
        assert process.end() == 0
    assert (site.counts().pending, site.counts().dead) == (2, 0)
    with site.station.ledger() as db:
        assert [row["failures"] for row in db.execute("select failures from job")] == [0] * 6
    told = json.loads(site.station.run("status", "--json").stdout)
    assert told["verdict"]["text"].startswith(f"{NAME} {'cannot be reached' if how == 'away' else 'refuses'}")
    site.other.headers_wanted = {}
    if how == "refuses":
        assert site.command("flush").returncode == 0
        assert site.counts().delivered == 2


def is_paused(site: Site) -> bool:
    with site.station.ledger() as db:
        (row,) = db.execute("select pause_reason from destination where name = ?", [NAME])
        return row["pause_reason"] is not None


def test_history_comes_to_a_new_destination_when_a_person_says_so(site: Site) -> None:
    with site.station.ledger() as db:
        db.execute("update destination set created_ms = ?", [clock.now_ms()])
    with hook(site.station) as process:
        process.show(export(TOOLS))
        process.wait_for_ack()
        assert process.end() == 0
    assert (site.counts("helicone").pending, site.counts().pending) == (2, 0)
    done = site.command("backfill", "--since", "2020-01-01", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queued"]["new"] == 1
    with site.station.ledger() as db:
        (row,) = db.execute("select is_history from job where destination_id = 1")
        assert row["is_history"]
    assert site.command("flush").returncode == 0
    assert len(site.other.posts) == 1


# --- at any instant


POINTS = (
    "claim.committed",
    "post.sending",
    "post.answered",
    "complete.noting",
    "complete.finishing",
    "complete.committed",
    "poller.waking",
)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_each_step_loses_and_doubles_nothing(site: Site, point: str) -> None:
    site.take(growing(0, 1))
    with site.worker(**{VARIABLE: point}) as process:
        assert process.wait(60) == -signal.SIGKILL
    with site.worker():
        wait_until(lambda: site.counts().delivered == 1)
    assert (site.counts().pending, site.counts().dead) == (0, 0)
    assert len(site.other.posts) <= 2
    assert list(site.other.traces.values()) == [2]


def test_turns_are_stored_once_whatever_is_killed_and_whatever_is_answered(site: Site) -> None:
    dice = random.Random(7)  # noqa: S311 - when
    turns = 0

    def answers() -> None:
        time.sleep(dice.uniform(0, 0.03))
        site.other.status = dice.choice((200, 200, 200, 429, 500, 503))

    site.other.before = answers
    for session in range(12):
        site.take(growing(session, 5))
        turns += 5
        with site.worker():
            time.sleep(dice.uniform(0.5, 1.2))
    site.other.before = lambda: setattr(site.other, "status", 200)
    with site.worker():
        wait_until(lambda: site.counts().pending == 0)
    assert (site.counts().delivered, site.counts().dead) == (turns, 0)
    assert sorted(site.other.traces.values()) == [2] * turns


# --- what changes


def cut_off(words: str) -> dict[str, Any]:
    return snapshots.snapshot(
        snapshots.entry(
            snapshots.user("msg_1", snapshots.CREATED_MS, snapshots.text("why?", "prt_a")),
            snapshots.assistant("msg_2", snapshots.CREATED_MS + 20, snapshots.text(words, "prt_b"), parent="msg_1"),
        )
    )


def versions(site: Site) -> tuple[int, int]:
    """Two of one turn, each delivered before the next one comes; the number of spans after each."""
    site.take(cut_off("blue whale"))
    assert site.command("flush").returncode == 0
    before = len(site.other.spans)
    told = cut_off("humpback")
    (entry,) = told["sessions"]
    entry["messages"][1]["info"]["time"]["completed"] += 1_000
    site.take(told)
    assert site.command("flush").returncode == 0
    return before, len(site.other.spans)


def test_a_turn_that_changed_is_deleted_and_sent_again(site: Site) -> None:
    before, after = versions(site)
    assert before == after == 2
    assert len(site.other.deleted) == 1
    assert site.counts().delivered == 1
    shown = b"".join(content for _, content in site.other.spans.values())
    assert b"humpback" in shown
    assert b"blue whale" not in shown


def test_where_nothing_can_be_deleted_a_changed_turn_stays_and_is_counted(site: Site) -> None:
    site.name(preset="none")
    versions(site)
    assert (len(site.other.posts), site.other.deleted) == (1, [])
    with site.station.ledger() as db:
        (noted,) = [what for what, _, _ in incidents.incidents(db)]
    assert noted.startswith(f"{NAME}: turns that changed after they were delivered")
    site.station.variables["OPENCODE_HELICONE_CONFIRM"] = "auto"
    assert "accepted, unverified" in site.command("status", "-v").stdout
    refused = site.command("recall", "ses_1", "--blank", "--yes")
    assert refused.returncode == 2
    assert "delete it by its own means" in refused.stderr


def test_a_recall_leaves_no_word(site: Site) -> None:
    told = cut_off("blue whale")
    put(store_file(site.station.environ), told)
    site.take(told)
    site.take(growing(3, 1))
    assert site.command("flush").returncode == 0
    done = site.command("recall", told["root"], "--blank", "--yes", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["outcomes"] == {"deleted": 1}
    assert not any(b"blue whale" in content for _, content in site.other.spans.values())
    assert len(site.other.traces) == 1
    site.take(told)
    assert site.command("flush").returncode == 0
    assert len(site.other.traces) == 1  # it is sealed


def test_a_recall_by_a_pattern_sends_the_turn_without_it(site: Site) -> None:
    told = cut_off("blue whale")
    put(store_file(site.station.environ), told)
    site.take(told)
    assert site.command("flush").returncode == 0
    done = site.command("recall", "--match", "blue whale", "--yes", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["outcomes"] == {"overwritten": 1}
    shown = b"".join(content for _, content in site.other.spans.values())
    assert b"blue whale" not in shown
    assert b"why?" in shown


# --- what answers mean


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_wrong_configuration_pauses_and_kills_nothing(site: Site, status: int) -> None:
    site.other.status = status
    site.take(growing(0, 2))
    assert site.station.run("flush", "--destination", NAME, "--timeout", "2").returncode == 1
    assert (site.counts().pending, site.counts().dead) == (2, 0)
    assert is_paused(site)
    site.other.status = 200
    assert site.command("flush").returncode == 0
    site.other.status = 400
    site.take(growing(1, 1))
    assert site.station.run("flush", "--destination", NAME, "--timeout", "5").returncode == 0
    assert site.counts().dead == 1  # of something that takes others the record is at fault


# --- what may leave


def planted(value: Any, secret: str) -> Any:
    """The same with the secret in every text."""
    if isinstance(value, dict):
        return {
            name: f"{inner} {secret}"
            if name in {"text", "title", "output", "error", "message"} and isinstance(inner, str)
            else planted(inner, secret)
            for name, inner in value.items()
        }
    return [planted(inner, secret) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("recording", ["j_unicode_secrets", "b_tools", "f_subagent"])
def test_no_secret_reaches_any_destination_nor_stays_in_the_spool(site: Site, recording: str) -> None:
    key = site.header.removeprefix("Bearer ")
    with hook(site.station) as process, worker(site.station), site.worker():
        process.show(planted(export(recording), key))
        process.wait_for_ack()
        assert process.end() == 0
        wait_until(lambda: site.counts("helicone").pending == site.counts().pending == 0)
        kept = b"".join(path.read_bytes() for path in site.station.spool.rglob("*") if path.is_file())
    assert site.counts().delivered > 0
    texts = b"".join(content for _, content in site.other.spans.values())
    logs = b"".join(site.helicone.bodies.values())
    assert b"[REDACTED]" in texts
    assert b"[REDACTED]" in logs
    for secret in (key, *SECRETS.values()):
        for where in (texts, logs, kept):
            assert secret.encode() not in where


def test_one_gets_no_text_beside_one_that_gets_all_of_it(site: Site) -> None:
    site.name('exportMode = "metadata_only"')
    told = cut_off("blue whale")
    with hook(site.station) as process, worker(site.station), site.worker():
        process.show(told, directory=PROJECT)
        process.wait_for_ack()
        assert process.end() == 0
        wait_until(lambda: (site.counts("helicone").delivered, site.counts().delivered) == (2, 1))
    assert b"blue whale" in b"".join(site.helicone.bodies.values())
    assert b"blue whale" not in bytes(site.other.wire)
    assert b"why?" not in bytes(site.other.wire)


# --- what a person types


def test_a_destination_that_no_setting_names_is_refused_with_those_that_there_are(site: Site) -> None:
    refused = site.station.run("flush", "--destination", "phenix")
    assert refused.returncode == 2
    assert "there is no such destination; there are helicone, phoenix" in refused.stderr


def test_helicone_switched_off_beside_another_is_well_and_needs_no_key(site: Site) -> None:
    site.name('[destinations.helicone]\nexportMode = "off"')
    site.station.variables["HELICONE_API_KEY"] = ""
    with hook(site.station) as process:
        process.show(export(TOOLS))
        process.wait_for_ack()
        assert process.end() == 0
    assert site.command("flush").returncode == 0
    told = json.loads(site.station.run("status", "--json").stdout)
    assert told["verdict"]["level"] == "ok", told["verdict"]
    assert (site.counts("helicone").dropped, site.counts().delivered) == (2, 1)
    assert "HELICONE_API_KEY" not in site.station.run("doctor").stdout


def test_what_no_setting_names_any_more_waits_and_is_told_until_it_is_given_up(site: Site) -> None:
    site.take(growing(0, 2))
    (site.folder / "config.toml").write_text("", "utf-8")
    with hook(site.station) as process:
        process.show(export(TOOLS))
        process.wait_for_ack()
        assert process.end() == 0
    told = json.loads(site.station.run("status", "--json").stdout)
    ((number, todo),) = [(one["destination_id"], one["todo"]) for one in told["elsewhere"]]
    assert todo == f"opencode-helicone destination forget {number}"
    refused = site.station.run("destination", "adopt", str(number), "--yes")
    assert refused.returncode == 1
    assert "of another kind" in refused.stderr
    assert site.station.run("destination", "forget", str(number), "--yes").returncode == 0
    told = json.loads(site.station.run("status", "--json").stdout)
    assert told["elsewhere"] == []


def test_doctor_sends_a_trace_and_finds_it(site: Site) -> None:
    done = site.command("doctor", "--send", "-v")
    assert "it is stored" in done.stdout, done.stdout + done.stderr
    assert len(site.other.traces) == 1


def test_verify_knows_what_came_before_a_destination_was_named(site: Site) -> None:
    with site.station.ledger() as db:
        db.execute("update destination set created_ms = ?", [clock.now_ms()])
    with hook(site.station) as process:
        process.show(export(TOOLS))
        process.wait_for_ack()
        assert process.end() == 0
    told = site.command("verify")
    assert told.returncode == 0, told.stdout
    assert "1 from before capture began" in told.stdout


def test_verify_misses_no_record_of_the_session_where_none_is_sent(site: Site) -> None:
    with hook(site.station) as process:
        process.show(export(TOOLS))
        process.wait_for_ack()
        assert process.end() == 0
    with site.station.ledger() as db:
        db.execute("update folder set since_ms = 0")
    told = site.command("verify", "--json")
    assert told.returncode == 0, told.stdout
    assert json.loads(told.stdout)["unexplained"] == 0
    assert json.loads(site.station.run("verify", "--json").stdout)["states"] == {"waiting": 1}


def test_what_leaves_and_what_is_dead_can_be_looked_at(site: Site) -> None:
    snapshot = cut_off("blue whale")
    put(store_file(site.station.environ), snapshot)
    told = site.command("preview", snapshot["root"], "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    ((record,),) = [one["records"] for one in json.loads(told.stdout)["sessions"]]
    assert record["kind"] == "turn"
    assert "blue whale" in json.dumps(record["body"])
    site.take(growing(0, 1))
    assert site.command("flush").returncode == 0
    site.other.status = 400
    site.take(cut_off("blue whale"))
    site.command("flush", "--timeout", "3")
    (letter,) = list(json.loads(site.station.run("jobs", "list", "--state", "dead", "--json").stdout)["jobs"])
    shown = site.station.run("dead", "show", letter["key"], "--bodies", "--json")
    assert "blue whale" in shown.stdout, shown.stderr

"""`recall` as a person meets it: asked, tried out, waiting. A real ledger, store and receiver."""

from __future__ import annotations

import json
import os
import pty
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.capture.enqueue import Place
from app.cli.options import STOPPED
from app.cli.render_recall import problem_line
from app.database.open import open_ledger
from app.ledger.claims import claim
from app.ledger.counts import pending_keys
from app.ledger.destinations import destination, fingerprint
from app.recall.rewrite import Problem, Refusal
from tests.capture.test_enqueue import EmbeddedApi
from tests.recall.test_recall import bench_of, claims, deliver, shown, told
from tests.sources.opencode.test_store import built
from tests.support import recorded
from tests.support.processes import Station
from tests.support.servers import Receiver, receiving
from tests.support.typed_commands import Interrupted, typed
from tests.system.test_cli import example, shape
from tests.system.test_erasure import traces

WHALE = "blue whale"
RECORDS = 4


@dataclass(frozen=True, slots=True)
class Scene:
    """One session was delivered, and OpenCode still has it."""

    station: Station
    embedded: EmbeddedApi
    receiver: Receiver

    def run(self, *arguments: str, stdin: str = "") -> tuple[int, dict[str, Any]]:
        """The exit code and what `recall` says."""
        done = self.station.run("recall", *arguments, "--json", stdin=stdin)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    store = tmp_path / "data" / "opencode" / "opencode.db"
    store.parent.mkdir(parents=True)
    built(store, told(WHALE))
    with receiving(tmp_path / "receiver.db") as receiver:
        station = Station(tmp_path, receiver.url)
        with closing(open_ledger(station.spool)) as db:
            ours = destination(db, receiver.url, fingerprint(db, station.key), 0)
            scene = Scene(station, EmbeddedApi(db, Place(ours.id, "folder")), receiver)
            scene.embedded.put(told(WHALE))
            deliver(scene.embedded, receiver)
            assert len(receiver.rows()) == RECORDS
            yield scene


@pytest.mark.slow
def test_a_dry_run_changes_nothing(scene: Scene) -> None:
    before = list(scene.embedded.db.iterdump())
    code, said = scene.run("ses_root", "--blank", "--dry-run")
    assert (code, said["records"], said["outcomes"], said["problems"]) == (0, RECORDS, {}, [])
    assert list(scene.embedded.db.iterdump()) == before
    assert [row.sends for row in scene.receiver.rows()] == [1] * RECORDS


@pytest.mark.parametrize(("answered", "code", "sends"), [("y\n", 0, 2), ("n\n", 2, 1)], ids=["yes", "no"])
def test_a_person_at_a_terminal_is_asked(scene: Scene, answered: str, code: int, sends: int) -> None:
    outer, inner = pty.openpty()
    os.write(outer, answered.encode())
    with os.fdopen(inner) as terminal:
        done = typed(scene.station, "recall", "ses_root", "--blank", stdin=terminal)
    os.close(outer)
    one = told(WHALE)["sessions"][0]["info"]
    day = datetime.fromtimestamp(one["time"]["created"] / 1000).astimezone().date()
    assert f"ses_root  {one['directory']}  {day}: 1 turns, {RECORDS} records" in done.stderr
    assert f"overwrite {RECORDS} records of 1 turns in 1 sessions?" in done.stderr
    assert done.returncode == code, done.stderr
    assert [row.sends for row in scene.receiver.rows()] == [sends] * RECORDS
    assert (WHALE in shown(scene.receiver)) is (sends == 1)


@pytest.mark.parametrize("arguments", [("recall", "ses_root", "--blank"), ("dead", "purge", "--all")], ids=" ".join)
def test_ctrl_c_at_a_question_ends_with_130_and_nothing_was_done(scene: Scene, arguments: Sequence[str]) -> None:
    if arguments[0] == "dead":
        scene.embedded.db.execute("update job set state = 'dead'")
    before = list(scene.embedded.db.iterdump())
    done = typed(scene.station, *arguments, stdin=Interrupted())
    assert done.returncode == STOPPED, done.stderr
    assert list(scene.embedded.db.iterdump()) == before


@pytest.mark.parametrize("command", ["audit", "recall"])
def test_what_is_printed_for_programs_has_the_shape_of_its_example(scene: Scene, command: str) -> None:
    chosen = ["ses_root", "--yes"] if command == "recall" else []
    done = typed(scene.station, command, *chosen, "--set", f'redactPatterns=["{WHALE}"]', "--json")
    assert shape(json.loads(done.stdout)) == shape(example(command)), done.stdout


@pytest.mark.slow
def test_a_session_that_another_destination_has_too_is_named(scene: Scene) -> None:
    other = destination(scene.embedded.db, "https://other.invalid", "fingerprint", 0)
    embedded = EmbeddedApi(scene.embedded.db, Place(other.id, "folder"))
    embedded.put(told(WHALE))
    assert not scene.run("ses_root", "--blank", "--dry-run")[1]["problems"]
    assert next(claims(bench_of(embedded)))  # from now on some of it may be there
    code, said = scene.run("ses_root", "--blank", "--dry-run")
    (problem,) = said["problems"]
    assert code == 1
    assert problem.startswith("ses_root: also delivered to https://other.invalid")
    assert scene.run("--match", WHALE, "--dry-run")[1]["problems"] == [problem]


@pytest.mark.slow
def test_the_pattern_may_come_on_standard_input_and_only_turns_since_are_searched(scene: Scene) -> None:
    code, said = scene.run("--match", "-", "--dry-run", stdin=f"{WHALE}\n")
    assert (code, said["turns"]) == (0, 1)
    code, said = scene.run("--match", "-", "--since", "1h", "--dry-run", stdin=f"{WHALE}\n")
    assert (code, said["turns"]) == (0, 0)
    nothing = scene.station.run("recall", "--match", "-", "--dry-run")
    assert (nothing.returncode, "no pattern on standard input" in nothing.stderr) == (2, True)


@pytest.mark.slow
def test_a_recall_that_is_in_flight_is_waited_for_and_queued_again(scene: Scene) -> None:
    scene.run("ses_root", "--blank", "--yes")
    scene.embedded.db.execute("update job set state = 'pending', finished_ms = null, due_ms = 1 where is_recall")
    now_ms = time.time_ns() // 1_000_000
    (key, *_) = pending_keys(scene.embedded.db)
    claimed = claim(
        scene.embedded.db, scene.embedded.place.destination_id, key, worker="dead", now_ms=now_ms, lease_ms=60_000
    )
    assert claimed is not None
    code, said = scene.run("ses_root", "--blank", "--yes")
    assert (code, said["outcomes"], said["problems"]) == (0, {"overwritten": RECORDS}, [])


@pytest.mark.slow
def test_audit_gives_no_all_clear_for_what_it_did_not_see(scene: Scene) -> None:
    assert scene.station.run("audit").returncode == 0
    unknown = scene.station.run("audit", "--session", "nope")
    assert (unknown.returncode, "nope: not delivered to here" in unknown.stderr) == (1, True)
    keyless = replace(scene.station, variables={"HELICONE_API_KEY": ""}).run("audit")
    assert (keyless.returncode != 0, "HELICONE_API_KEY" in keyless.stderr) == (True, True)
    (scene.station.home / "data" / "opencode" / "opencode.db").unlink()
    built(scene.station.home / "data" / "opencode" / "opencode.db", recorded.export("a_simple"))
    gone = scene.station.run("audit")
    assert (gone.returncode, "ses_root: cannot be audited" in gone.stdout) == (1, True)


@pytest.mark.slow
def test_a_recall_leaves_no_body_of_what_it_overwrote_in_the_spool(scene: Scene) -> None:
    """What was delivered lies in the log until that is written over, and in what was set aside after damage."""
    spool = scene.station.spool
    (spool / "ledger.db.damaged-wal-1").write_bytes((spool / "ledger.db-wal").read_bytes())
    assert traces(spool, [], WHALE.encode()) == {"ledger.db-wal", "ledger.db.damaged-wal-1"}
    code, said = scene.run("ses_root", "--blank", "--yes")
    assert (code, said["problems"]) == (0, [])
    assert traces(spool, [], WHALE.encode()) == set()


@pytest.mark.parametrize("refusal", Refusal)
def test_whatever_is_not_overwritten_is_told_of_in_a_sentence(refusal: Refusal) -> None:
    line = problem_line(Problem(refusal, "ses_1", "msg_1", "why"))
    assert line.startswith("ses_1: msg_1: ")
    assert "{" not in line

"""`verify`: what became of each turn that OpenCode has, told from its store, the ledger and Helicone."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from app.capture.targets import folder
from app.exporters.helicone.client import Client
from app.ledger import claims, counts, destinations, folders, history
from app.ledger.job import FailedAttempt
from app.runtime import clock
from app.runtime.liveness import Announced
from app.runtime.spool import Spool
from app.settings.lookup import typed as typed_sources
from app.sources.opencode.store import Store, store_file
from app.verify.remote_check import IDS_MAX, check
from app.verify.turn_status import Circumstances, StoredTurn, turn_state
from app.verify.verify import SETTLE_S, Choice, verify
from tests.capture.test_enqueue import capture
from tests.sources.opencode.test_store import built
from tests.support.ledger_bench import accepted
from tests.support.processes import PROJECT, Station
from tests.support.servers import api_key, receiving
from tests.support.snapshots import CREATED_MS, Fields, assistant, entry, task, text, unfinished, user
from tests.support.typed_commands import typed
from tests.system.test_cli import OPEN, example, shape

CANARY = "swordfish-4711"
LATE_MS = CREATED_MS + 100_000
"""After all turns."""


def turn(number: int, said: str = CANARY, *, ended: bool = True, later_ms: int = 0) -> list[Fields]:
    at_ms = CREATED_MS + 1_000 * number
    asked, answered = f"msg_{number}a", f"msg_{number}b"
    answer = (assistant if ended else unfinished)(
        answered, at_ms + 10 + later_ms, text(said, f"prt_{answered}"), parent=asked
    )
    return [user(asked, at_ms, text(CANARY, f"prt_{asked}")), answer]


def talk(turns: int = 2, name: str = "ses_root", first: int = 1, **info: Any) -> Fields:
    """A session of finished turns, one in a second; their ids tell which."""
    numbers = range(first, first + turns)
    return entry(*(one for number in numbers for one in turn(number)), id=name, title=CANARY, **info)


def of(*turns: list[Fields], **info: Any) -> Fields:
    return entry(*(one for messages in turns for one in messages), **{"title": CANARY, **info})


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine with OpenCode's store and our ledger, in one process."""

    station: Station

    def holds(self, *entries: Fields) -> None:
        """Have OpenCode's store hold these, and nothing else."""
        path = store_file(self.station.environ)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        built(path, {"sessions": entries})

    def export(self, *entries: Fields, key: str | None = None, options: tuple[str, ...] = ()) -> None:
        """Have the ledger know them, as they are now."""
        seen = self.station.home / "seen.db"
        seen.unlink(missing_ok=True)
        store = Store(built(seen, {"sessions": entries}))
        paths = []
        for number, one in enumerate(entries):
            paths.append(self.station.home / f"{number}.json")
            paths[-1].write_bytes(store.files(one["info"]["id"])[0].data or b"")
        station = self.station if key is None else replace(self.station, key=key)
        done = typed(station, "import", *options, *map(str, paths))
        assert done.returncode == 0, done.stderr

    def captured(self, since_ms: int = 0, **options: object) -> None:
        """A hook has captured the folder since then."""
        with self.station.ledger() as db:
            ours = destinations.destinations(db)
            one = ours[-1].id if ours else None
            remember = folders.remember_folder
            remember(db, folder(db, PROJECT), one, options, since_ms)  # type: ignore[arg-type]  # none yet

    def change(self, columns: str, **names: str) -> None:
        """Set columns of current jobs of a turn: what other parts of the program lead to."""
        with self.station.ledger() as db:
            changed = db.execute(
                f"update job set {columns} where state <> 'superseded'"  # noqa: S608 - ours
                " and turn_id in (select id from turn where name = coalesce(:turn, name))",
                {"turn": names.get("turn")},
            )
            assert changed.rowcount

    def deliver(self, url: str | None = None, now_ms: int = 1_000) -> None:
        """All that waits, the oldest first; posted where a receiver is named."""
        with self.station.ledger() as db, closing(Client(self.station.key)) as client:
            (one,) = destinations.destinations(db)
            for name in sorted(counts.pending_keys(db)):
                claimed = claims.claim(db, one.id, name, worker="w", now_ms=1 << 50, lease_ms=1)
                assert claimed is not None
                for body in list(claims.unacknowledged(db, claimed)):
                    if url is not None:
                        post = url + "/v1/trace/custom/log"
                        assert client.post(post, body.body, str(body.request_id), 0).kind == "accepted"
                    claims.acknowledge(db, claimed, [accepted(db, claimed, body, now_ms)], now_ms=now_ms, lease_ms=1)
                assert claims.complete(db, claimed, now_ms)

    @contextmanager
    def live(self, *sessions: str) -> Iterator[None]:
        """An OpenCode that is alive has these open."""
        announced = Announced(Spool(self.station.spool).hooks)
        announced.say({"sessions": sessions, "destination": 1, "backlog": 0})
        try:
            yield
        finally:
            announced.withdraw()

    def verified(self, *arguments: str) -> tuple[int, Any]:
        """The exit code, and what `--json` tells."""
        done = typed(self.station, "verify", "--json", *arguments)
        assert not done.stderr
        assert CANARY not in done.stdout
        return done.returncode, json.loads(done.stdout)

    def states(self, *arguments: str) -> dict[str, int]:
        """Of all turns. The exit code must fit them."""
        code, told = self.verified(*arguments)
        unexplained = [name for one in told["sessions"] for name in one["unexplained"]]
        assert code == (1 if unexplained else 0)
        assert told["unexplained"] == len(unexplained)
        states: dict[str, int] = told["states"]
        assert sum(states.values()) == told["turns"]
        return states

    def session(self, *arguments: str) -> Any:
        (one,) = self.verified(*arguments)[1]["sessions"]
        return one


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(Station(home, "http://127.0.0.1:9"))


# --- what the ledger says


def test_delivered_turns_are_told_apart_by_what_was_read_back(machine: Machine) -> None:
    machine.holds(talk(3))
    machine.export(talk(3))
    machine.deliver()
    machine.change("confirmed_ms = 1", turn="msg_1a")
    machine.change("body_not_stored = 1", turn="msg_2a")
    one = machine.session()
    assert one["states"] == {"delivered": 3}
    assert (one["turns"], one["confirmed"], one["body_not_stored"]) == (3, 1, 1)
    assert machine.verified()[0] == 0


def test_waiting_turns_are_told_apart_by_why(machine: Machine) -> None:
    machine.holds(talk(3))
    machine.export(talk(3))
    machine.change("hold_reason = 'off'", turn="msg_1a")
    machine.change("body_bytes = 0", turn="msg_2a")
    one = machine.session()
    assert (one["states"], one["held"], one["without_bodies"]) == ({"waiting": 3}, 1, 1)


def test_dead_and_dropped_turns_are_explained_and_named(machine: Machine) -> None:
    machine.holds(talk(3))
    machine.export(talk(3))
    with machine.station.ledger() as db:
        for number in range(2):
            name = min(counts.pending_keys(db))
            claimed = claims.claim(db, 1, name, worker="w", now_ms=1 << 50, lease_ms=1)
            assert claimed is not None
            assert claims.dead_letter(db, claimed, FailedAttempt(number, "400: no", 400))
    before = machine.states()
    assert before["dead"] >= 1
    assert typed(machine.station, "dead", "purge", "--all", "--yes").returncode == 0
    after = machine.session()
    assert after["states"] == {"waiting": before["waiting"], "dropped": before["dead"]}
    assert after["dropped_by_reason"] == {"purged": before["dead"]}


def test_what_was_noted_while_export_was_off_stays_explained_also_when_it_changed(machine: Machine) -> None:
    machine.export(talk(2), options=("--export-mode", "off"))
    machine.captured()
    machine.holds(of(turn(1), turn(2, "longer", later_ms=50)))
    assert machine.states() == {"dropped": 2}


@pytest.mark.parametrize("column", ["is_sealed", "is_recall"])
def test_a_recalled_turn_is_no_delivered_one(machine: Machine, column: str) -> None:
    machine.holds(talk(2))
    machine.export(talk(2))
    machine.deliver()
    machine.change(f"{column} = 1", turn="msg_1a")
    assert machine.states() == {"delivered": 1, "recalled": 1}


def test_a_sealed_turn_is_not_missed_when_it_changes(machine: Machine) -> None:
    machine.export(talk(1))
    machine.captured()
    machine.deliver()
    machine.holds(of(turn(1, "longer", later_ms=50)))
    assert machine.states() == {"changed": 1}
    machine.change("is_sealed = 1", turn="msg_1a")
    assert machine.states() == {"recalled": 1}


def test_versions_that_were_replaced_are_a_number(machine: Machine) -> None:
    newer = of(turn(1, "longer", later_ms=50), turn(2))
    machine.export(talk(2))
    machine.export(newer)
    machine.holds(newer)
    assert (machine.session()["states"], machine.session()["superseded"]) == ({"waiting": 2}, 1)


def test_a_session_is_named_by_the_whole_of_its_id(machine: Machine) -> None:
    name = "ses_dfd0c4cf4ffedrfrcrRE7VEskL"
    machine.export(talk(1, name))
    machine.holds(talk(1, name))
    assert f" {name} " in typed(machine.station, "verify").stdout


# --- what the ledger lacks


def test_a_turn_that_nobody_brought_is_unexplained_and_the_way_out_is_named(machine: Machine) -> None:
    machine.export(talk(1))
    machine.captured()
    machine.holds(talk(3))
    assert machine.states() == {"waiting": 1, "never_seen": 2}
    done = typed(machine.station, "verify")
    assert done.returncode == 1
    total, advice, project, line = done.stdout.splitlines()
    assert total == "problem: 1 session, 3 turns: 1 waiting, 2 NEVER SEEN"
    assert advice.startswith("  2 unexplained: start OpenCode")
    assert advice.endswith("backfill --session ses_root")
    assert project == "project: 1 session: 1 waiting, 2 NEVER SEEN"
    assert line.endswith(f' ses_root "{CANARY}": 1 waiting, 2 NEVER SEEN')
    assert done.stdout.count(CANARY) == 1  # its title


def test_sessions_with_nothing_to_say_are_a_count(machine: Machine) -> None:
    machine.export(talk(1), talk(2, "ses_two", first=10))
    machine.captured()
    machine.holds(talk(1), talk(2, "ses_two", first=10))
    machine.deliver()
    assert typed(machine.station, "verify").stdout == "ok: 2 sessions, 3 turns: 3 delivered\n"
    assert typed(machine.station, "verify", "--problems").stdout == "ok: 2 sessions, 3 turns: 3 delivered\n"
    lines = typed(machine.station, "verify", "-v").stdout.splitlines()
    assert lines[1] == "project: 2 sessions: 3 delivered"
    assert [line.split()[1] for line in lines[2:]] == ["ses_root", "ses_two"]
    assert len(typed(machine.station, "verify", "--session", "ses_two").stdout.splitlines()) == 3


def test_problems_leaves_out_what_only_waits(machine: Machine) -> None:
    machine.export(talk(1), talk(2, "ses_two", first=10))
    machine.captured()
    machine.holds(talk(1), talk(3, "ses_two", first=10))
    assert typed(machine.station, "verify").stdout.count(" ses_root ") == 1
    problems = typed(machine.station, "verify", "--problems").stdout
    assert (problems.count(" ses_root "), problems.count(' ses_two "')) == (0, 1)
    done = typed(machine.station, "verify", "--problems", "-v")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_a_turn_that_never_ended_is_unexplained_once_its_opencode_is_gone(machine: Machine) -> None:
    machine.export(talk(1))
    machine.captured()
    machine.holds(of(turn(1), turn(2, ended=False)))
    with machine.live("ses_root"):
        assert machine.states() == {"waiting": 1, "in_progress": 1}
    with machine.live("ses_other"):
        assert unexplained_at_once(machine) == ("msg_2a",)
    assert machine.states() == {"waiting": 1, "never_seen": 1}


def unexplained_at_once(machine: Machine) -> tuple[str, ...]:
    """Without waiting for anybody."""
    store = Store(store_file(machine.station.environ))
    sources = typed_sources(machine.station.environ, machine.station.home)
    return tuple(name for one in verify(sources, store, Choice(), pause=lambda _: None) for name in one.unexplained)


def test_a_newer_version_is_unexplained_unless_a_live_opencode_brings_it(machine: Machine) -> None:
    machine.export(talk(2))
    machine.captured()
    machine.holds(of(turn(1), turn(2, "longer", later_ms=50)))
    assert machine.states() == {"waiting": 1, "changed": 1}
    assert "1 CHANGED SINCE" in typed(machine.station, "verify").stdout
    with machine.live("ses_root"):
        assert machine.states() == {"waiting": 1, "in_progress": 1}


def test_other_content_of_the_same_time_is_a_newer_version_and_an_older_one_is_not(machine: Machine) -> None:
    machine.export(of(turn(1, "longer", later_ms=50)))
    machine.captured()
    machine.holds(of(turn(1, "other", later_ms=50)))
    assert machine.states() == {"changed": 1}
    machine.holds(of(turn(1, "longer")))
    assert machine.states() == {"waiting": 1}


def test_under_another_policy_only_a_later_time_makes_a_newer_version(machine: Machine) -> None:
    machine.export(talk(2))
    machine.captured()
    stricter = ("--set", 'redactPatterns=["x"]')
    machine.holds(of(turn(1, "other"), turn(2)))
    assert machine.states() == {"changed": 1, "waiting": 1}
    assert machine.states(*stricter) == {"waiting": 2}
    machine.holds(of(turn(1, "other", later_ms=50), turn(2)))
    assert machine.states(*stricter) == {"changed": 1, "waiting": 1}


def test_where_no_hook_has_been_nothing_is_missed(machine: Machine) -> None:
    machine.export(talk(1))
    machine.holds(of(turn(1, "longer", later_ms=50), turn(2)))
    assert machine.states() == {"elsewhere": 2}


def test_what_was_over_before_capture_began_is_not_missed(machine: Machine) -> None:
    machine.holds(talk(2))
    machine.captured(since_ms=LATE_MS)
    assert machine.states() == {"earlier": 2}


def test_of_a_session_that_went_on_only_what_came_then_is_missed(machine: Machine) -> None:
    machine.holds(talk(2))
    machine.captured(since_ms=CREATED_MS + 2_000 + destinations.STARTING_MS)  # the second turn begins
    assert machine.states() == {"earlier": 1, "never_seen": 1}


def test_a_turn_whose_subagent_was_recalled_is_recalled() -> None:
    at = Circumstances(None, "", is_live=False, is_inside=False, captured_since_ms=0, elsewhere=frozenset())
    turn = StoredTurn("msg_1", "digest", 5, is_final=True)
    assert turn_state(turn, [], at) == "switched_off"
    assert turn_state(turn, [], replace(at, sealed=frozenset({"msg_1"}))) == "recalled"


def test_what_is_unfinished_and_was_written_just_now_may_go_on_without_a_hook(machine: Machine) -> None:
    machine.captured()
    machine.holds(of(turn(1, ended=False)))
    assert machine.states() == {"never_seen": 1}
    with closing(sqlite3.connect(store_file(machine.station.environ))) as db, db:
        db.execute("update part set time_updated = ?", (clock.now_ms(),))
    assert machine.states() == {"in_progress": 1}
    with closing(sqlite3.connect(store_file(machine.station.environ))) as db, db:
        db.execute("update part set time_updated = ?", (clock.now_ms() + 1_000_000_000,))
    assert machine.states() == {"never_seen": 1}  # its clock was wrong


def test_what_was_written_as_capture_began_is_missed() -> None:
    turn = StoredTurn("msg_1", "digest", 5, is_final=True)
    at = Circumstances(capture(), "", is_live=False, is_inside=False, captured_since_ms=5, elsewhere=frozenset())
    assert turn_state(turn, [], at) == "never_seen"
    assert turn_state(turn, [], replace(at, captured_since_ms=6)) == "earlier"


def test_a_turn_that_somebody_deleted_is_dropped_whatever_became_of_it(machine: Machine) -> None:
    machine.export(talk(1))
    machine.captured()
    machine.change("state = 'dropped', drop_reason = 'deleted', due_ms = null, finished_ms = 1, body_bytes = 0")
    machine.holds(of(turn(1, "edited", later_ms=5)))
    assert machine.states() == {"dropped": 1}


def test_a_session_that_has_become_a_subagent_is_not_deleted(machine: Machine) -> None:
    child = talk(1, "ses_child", first=50)
    machine.export(child)
    machine.captured()
    calls = assistant("msg_2b", CREATED_MS + 1_010, task("ses_child"), parent="msg_2a")
    machine.holds(of([user("msg_2a", CREATED_MS + 1_000), calls]), talk(1, "ses_child", first=50, parentID="ses_root"))
    assert [one["session"] for one in machine.verified()[1]["sessions"]] == ["ses_root"]


@pytest.mark.parametrize("options", [{"enable": False}, {"exportMode": "off"}], ids=["enable", "off"])
def test_where_export_is_switched_off_nothing_is_missed(machine: Machine, options: dict[str, object]) -> None:
    machine.holds(talk(2))
    machine.captured(0, **options)
    assert machine.states() == {"switched_off": 2}


def test_what_a_wrong_file_holds_is_held_and_not_switched_off(machine: Machine) -> None:
    machine.holds(talk(2))
    machine.captured(0, held="opencode.json line 3: it is not JSON")
    assert machine.states() == {"held": 2}
    lines = typed(machine.station, "verify").stdout
    assert lines.startswith("waiting: ")
    assert "2 held: mend what `opencode-helicone doctor` names there, then: opencode-helicone flush" in lines
    assert "switched off" not in lines


def test_what_is_from_before_comes_with_the_command_that_takes_it(machine: Machine) -> None:
    machine.holds(talk(2))
    lines = typed(machine.station, "verify").stdout
    assert "2 from before the plugin was used in their folder" in lines
    assert "opencode-helicone backfill queues them" in lines


def test_a_subagent_whose_caller_is_gone_is_inside_of_it(machine: Machine) -> None:
    calls = assistant("msg_2b", CREATED_MS + 1_010, task("ses_child"), parent="msg_2a")
    root = of([user("msg_2a", CREATED_MS + 1_000), calls])
    child = talk(1, "ses_child", first=50, parentID="ses_root")
    machine.export(root, child)
    machine.captured()
    machine.holds(child)
    told = {one["session"]: one for one in machine.verified()[1]["sessions"]}
    assert told["ses_child"]["states"] == {"inside": 1}
    assert told["ses_root"]["is_deleted"]
    assert machine.verified()[0] == 0


def test_a_subagent_that_no_call_names_is_not_lost_silently(machine: Machine) -> None:
    child = talk(1, "ses_child", first=50, parentID="ses_root")
    machine.holds(talk(1), child)
    machine.export(talk(1))
    machine.captured()
    told = {one["session"]: one["states"] for one in machine.verified()[1]["sessions"]}
    assert told == {"ses_root": {"waiting": 1}, "ses_child": {"never_seen": 1}}


def test_what_went_to_another_destination_is_told_as_that(machine: Machine) -> None:
    machine.holds(talk(2))
    machine.export(talk(1), key=api_key("other"))
    machine.captured()
    assert machine.states() == {"other_destination": 1, "never_seen": 1}


def test_a_session_that_opencode_deleted_is_listed_with_its_numbers(machine: Machine) -> None:
    machine.export(talk(2, "ses_gone", first=50), talk(1))
    machine.captured()
    machine.deliver()
    machine.holds(talk(1))
    kept, gone = machine.verified()[1]["sessions"]
    assert (kept["session"], kept["is_deleted"]) == ("ses_root", False)
    assert (gone["session"], gone["is_deleted"], gone["turns"]) == ("ses_gone", True, 2)
    assert gone["states"] == {"delivered": 2}
    assert "2 delivered; deleted in OpenCode" in typed(machine.station, "verify", "-v").stdout


def test_a_turn_that_opencode_deleted_is_a_number(machine: Machine) -> None:
    machine.export(talk(3))
    machine.captured()
    machine.holds(talk(1))
    one = machine.session()
    assert (one["turns"], one["states"], one["gone"]) == (1, {"waiting": 1}, 2)
    assert machine.verified()[0] == 0


def test_the_sessions_own_record_is_told_of_only_when_something_is_wrong_with_it(machine: Machine) -> None:
    machine.export(talk(1))
    machine.captured()
    machine.holds(talk(1))
    assert machine.session()["record"] == "waiting"
    assert "record" not in typed(machine.station, "verify").stdout
    machine.holds(of(turn(1), title=f"{CANARY} renamed"))
    one = machine.session()
    assert (one["record"], one["states"], one["unexplained"]) == ("changed", {"waiting": 1}, ["session"])
    done = typed(machine.station, "verify")
    assert (done.returncode, "1 session record(s) CHANGED SINCE" in done.stdout) == (1, True)
    # The time of a session moves on with every turn: under another policy it says nothing.
    machine.holds(of(turn(1), time={"created": CREATED_MS, "updated": CREATED_MS + 500}))
    other = machine.session("--set", 'redactPatterns=["x"]')
    assert (other["record"], other["unexplained"]) == ("waiting", [])


def test_a_live_hook_gets_a_moment_for_what_has_just_ended(machine: Machine) -> None:
    machine.export(talk(1))
    machine.captured()
    machine.holds(talk(2))
    store = Store(store_file(machine.station.environ))
    sources = typed_sources(machine.station.environ, machine.station.home)
    waited: list[float] = []

    def bring(pause_s: float) -> None:
        waited.append(pause_s)
        machine.export(talk(2))

    (status,) = verify(sources, store, Choice(), pause=waited.append)
    assert (status.unexplained, waited) == (("msg_2a",), [])
    with machine.live():
        (status,) = verify(sources, store, Choice(), pause=bring)
        assert (status.unexplained, waited) == ((), [SETTLE_S])
        verify(sources, store, Choice(), pause=waited.append)
        assert waited == [SETTLE_S]  # all is explained

    machine.holds(talk(3))
    with machine.live("ses_root"):  # what has ended long ago nobody is about to bring
        assert unexplained_at_once(machine) == ("msg_3a",)


# --- which sessions, and stores that cannot be read


def test_sessions_are_chosen_by_name_and_by_when_they_changed(machine: Machine) -> None:
    late = talk(1, "ses_late", first=90)
    machine.export(talk(1, "ses_gone", first=50))
    machine.holds(talk(1), late)

    def sessions(*arguments: str) -> list[str]:
        return [one["session"] for one in machine.verified(*arguments)[1]["sessions"]]

    assert sessions() == ["ses_late", "ses_root", "ses_gone"]
    since = "1970-01-01T00:16:40+00:00"
    assert sessions("--since", since) == ["ses_late", "ses_root", "ses_gone"]
    assert sessions("--since", "1970-01-01T00:18:05+00:00") == ["ses_late"]
    assert sessions("--since", "1h") == []
    assert sessions("--session", "ses_gone", "--session", "ses_late", "--session", "ses_gone") == [
        "ses_gone",
        "ses_late",
    ]
    unknown = typed(machine.station, "verify", "--session", "ses_nowhere")
    assert (unknown.returncode, "ses_nowhere" in unknown.stderr) == (1, True)
    wrong = typed(machine.station, "verify", "--since", "tomorrow")
    assert (wrong.returncode, "'--since': 'tomorrow' is neither" in wrong.stderr) == (2, True)


def test_a_session_that_cannot_be_read_keeps_no_other_from_being_judged(machine: Machine) -> None:
    machine.captured()
    machine.holds(talk(1), talk(0, "ses_odd"))
    with closing(sqlite3.connect(store_file(machine.station.environ))) as db, db:
        db.execute("insert into message values ('msg_odd', 'ses_odd', 1000001, 1000001, '{\"role\": \"oddity\"}')")
    code, told = machine.verified()
    assert code == 1
    odd, root = told["sessions"]
    assert root["states"] == {"never_seen": 1}
    assert (odd["failure"], odd["unreadable"], odd["states"]) == ("", 1, {})
    assert "1 turn(s) that CANNOT BE READ" in typed(machine.station, "verify").stdout


def test_a_store_that_is_none_is_named(machine: Machine) -> None:
    other = machine.station.home / "other.db"
    other.write_bytes(b"no store" * 1_000)
    done = typed(machine.station, "verify", "--db", str(other))
    assert (done.returncode, done.stdout) == (1, "")
    assert "other.db cannot be read" in done.stderr
    built(other.with_name("copied.db"), {"sessions": [talk(1)]})
    assert machine.states("--db", str(other.with_name("copied.db"))) == {"elsewhere": 1}


def test_the_json_has_the_keys_of_the_docs(machine: Machine) -> None:
    told = example("verify")
    machine.holds(talk(1))
    machine.export(talk(1))
    found = machine.verified()[1]
    found["sessions"][0]["remote"] = told["sessions"][0]["remote"]
    assert {"dropped_by_reason"} <= OPEN
    for one in (told, found):
        one["states"] = {}
        for session in one["sessions"]:
            session["states"], session["unexplained"] = {}, []
    assert shape(found) == shape(told)


# --- Helicone


@pytest.fixture
def sent(tmp_path: Path) -> Iterator[tuple[Machine, Path]]:
    """Two turns that are at Helicone, and the file of its rows."""
    home = tmp_path / "home"
    home.mkdir()
    with receiving(tmp_path / "receiver" / "store.db") as receiver:
        machine = Machine(Station(home, receiver.url))
        machine.holds(talk(2))
        machine.export(talk(2))
        machine.deliver(receiver.url)
        yield machine, receiver.store


def forget(rows: Path, request_id: str) -> None:
    with closing(sqlite3.connect(rows)) as db, db:
        assert db.execute("delete from log where request_id = ?", (request_id,)).rowcount == 1


def test_a_row_that_helicone_lost_is_missing(sent: tuple[Machine, Path]) -> None:
    machine, rows = sent
    code, told = machine.verified("--remote")
    (one,) = told["sessions"]
    assert code == 0
    assert one["remote"] == {
        "found": 5, "without_bodies": 0, "missing": 0, "not_yet": 0, "missing_turns": [], "unnamed_turns": 0,
        "at_centre": 0, "dead_at_centre": {},
    }  # fmt: skip
    assert "records at Helicone: 5 found" in typed(machine.station, "verify", "--remote").stdout
    with machine.station.ledger() as db:
        lost = [one for one in history.exported(db, 1, "ses_root") if one.turn == "msg_2a"][-1].identities[-1]
    forget(rows, str(lost.request_id))
    code, told = machine.verified("--remote")
    remote = told["sessions"][0]["remote"]
    assert (code, remote["found"], remote["missing"], remote["missing_turns"]) == (1, 4, 1, ["msg_2a"])
    done = typed(machine.station, "verify", "--remote")
    assert "4 found, 1 MISSING" in done.stdout
    assert "not at Helicone" in done.stdout.splitlines()[1]
    assert machine.verified()[0] == 0  # nobody has looked


def test_what_was_delivered_a_moment_ago_may_still_be_on_its_way(sent: tuple[Machine, Path]) -> None:
    machine, rows = sent
    with machine.station.ledger() as db:
        lost = history.exported(db, 1, "ses_root")[-1].identities[-1]
    forget(rows, str(lost.request_id))
    machine.change(f"finished_ms = {clock.now_ms() + 60_000}")
    code, told = machine.verified("--remote")
    remote = told["sessions"][0]["remote"]
    assert (code, remote["missing"], remote["not_yet"]) == (0, 0, 1)


def test_rows_without_bodies_are_told_and_no_alarm(sent: tuple[Machine, Path]) -> None:
    machine, rows = sent
    with closing(sqlite3.connect(rows)) as db, db:
        db.execute("update log set request_body = '', response_body = ''")
    code, told = machine.verified("--remote")
    assert (code, told["sessions"][0]["remote"]["without_bodies"]) == (0, 5)


def test_turns_from_before_ids_were_kept_are_named_and_no_alarm(sent: tuple[Machine, Path]) -> None:
    machine, _ = sent
    with machine.station.ledger() as db:
        db.execute("delete from footprint where job_id in (select j.id from job j join turn t on t.id = j.turn_id"
                   " where t.name = 'msg_1a')")  # fmt: skip
    code, told = machine.verified("--remote")
    remote = told["sessions"][0]["remote"]
    assert (code, remote["found"], remote["unnamed_turns"]) == (0, 3, 1)
    assert "1 delivered turn(s) with unknown ids" in typed(machine.station, "verify", "--remote").stdout


def test_turns_without_content_and_sessions_that_opencode_deleted_are_looked_for_too(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with receiving(tmp_path / "receiver" / "store.db") as receiver:
        machine = Machine(Station(tmp_path / "home", receiver.url))
        machine.holds()
        machine.export(talk(1), options=("--export-mode", "metadata_only"))
        machine.deliver(receiver.url)
        code, told = machine.verified("--remote")
        (one,) = told["sessions"]
        assert (code, one["is_deleted"], one["remote"]["found"], one["remote"]["without_bodies"]) == (0, True, 3, 0)
        forget(receiver.store, str(receiver.rows()[0].log.request_id))
        assert machine.verified("--remote")[0] == 1


def test_a_helicone_that_cannot_be_asked_is_named(sent: tuple[Machine, Path]) -> None:
    machine, _ = sent
    for station, said in (
        (replace(machine.station, variables={"HELICONE_READBACK_URL": "http://127.0.0.1:9"}), "ConnectError"),
        (replace(machine.station, key=""), "there is no key"),
    ):
        done = typed(station, "verify", "--remote")
        assert done.returncode == 1
        assert f"Helicone could not be asked: {said}" in done.stdout


def test_only_what_the_delivered_version_holds_must_be_there(sent: tuple[Machine, Path]) -> None:
    machine, _ = sent
    machine.export(of(turn(1), turn(2, "longer", later_ms=50)))
    with machine.station.ledger() as db:
        known = history.exported(db, 1, "ses_root")
    old = next(one for one in known if one.state == "superseded" and one.turn == "msg_2a")
    stray = replace(old.identities[0], request_id=uuid.UUID(int=7))
    delivered = replace(next(one for one in known if one.turn == "msg_1a"), state="delivered")
    asked: list[uuid.UUID] = []

    def read(_start_ms: int, ids: Any) -> dict[uuid.UUID, bool]:
        asked.extend(ids)
        return {one: True for one in ids if one != stray.request_id}

    versions = [replace(old, turn="msg_1a", identities=(stray,)), delivered]
    found = check(versions, read, now_ms=1 << 50, delay_ms=0)
    assert (found.found, found.missing) == (len(delivered.identities), 0)
    assert stray.request_id in asked
    unsent = [replace(versions[0], was_attempted=False), delivered]
    asked.clear()
    check(unsent, read, now_ms=1 << 50, delay_ms=0)
    assert stray.request_id not in asked


def test_a_session_is_asked_for_in_queries_of_a_bounded_size_each_with_its_own_start(
    sent: tuple[Machine, Path],
) -> None:
    machine, _ = sent
    with machine.station.ledger() as db:
        one = next(one for one in history.exported(db, 1, "ses_root") if one.turn == "msg_1a")
    identities = tuple(
        replace(
            one.identities[0],
            request_id=uuid.UUID(int=n),
            identity_fields=replace(one.identities[0].identity_fields, start_ms=1_000 + n),
        )
        for n in range(2 * IDS_MAX + 1)
    )
    asked: list[tuple[int, int]] = []

    def read(start_ms: int, ids: Any) -> dict[uuid.UUID, bool]:
        asked.append((start_ms, len(ids)))
        return dict.fromkeys(ids, True)

    assert check([replace(one, identities=identities)], read, now_ms=1, delay_ms=0).found == len(identities)
    assert asked == [(1_000, IDS_MAX), (1_000 + IDS_MAX, IDS_MAX), (1_000 + 2 * IDS_MAX, 1)]

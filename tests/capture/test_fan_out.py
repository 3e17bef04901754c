"""A turn becomes a job for each destination, and what is the matter with one of them is nothing to the others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from app.capture.handler import Hook
from app.capture.session_reader import Reader
from app.capture.targets import target
from app.database.open import open_ledger
from app.ledger import incidents, job, notices, pruning
from app.ledger.destinations import STARTING_MS
from app.privacy.policy import Policy
from tests.capture.test_reconcile import (
    Machine,
    asked_and_answered,
    followed_up,
    look_for,
    notice,
    talk,
)
from tests.support.snapshots import CREATED_MS, Fields, assistant, text, user

BEGUN_MS = CREATED_MS + 500
PHOENIX = """
[destinations.phoenix]
kind = "otlp"
endpoint = "http://127.0.0.1:6006"
headers = { Authorization = "PHOENIX_AUTHORIZATION" }
"""


class Fanned(Machine):
    """Helicone, and a receiver that settings name since BEGUN_MS."""

    def name(self, tables: str = PHOENIX, begun_ms: int = BEGUN_MS) -> None:
        (self.home / "config").mkdir(exist_ok=True)
        (self.home / "config" / "config.toml").write_text(tables, "utf-8")
        self.variables["PHOENIX_AUTHORIZATION"] = "Bearer abc"
        with closing(open_ledger(self.home / "spool")) as db:
            target(db, replace(self.sources, destination="phoenix").load(), begun_ms + STARTING_MS)

    def turns(self) -> list[tuple[str, str, str]]:
        """(destination, turn, state) of all versions, the oldest first."""
        with closing(open_ledger(self.home / "spool")) as db:
            rows = db.execute(
                "select iif(d.name = '', d.kind, d.name), t.name, j.state from job j join turn t on t.id = j.turn_id"
                " join destination d on d.id = j.destination_id where t.name <> ? order by j.id",
                [job.SESSION_RECORD],
            ).fetchall()
        return [tuple(row) for row in rows]

    def shown_to(self, name: str) -> bytes:
        """All bodies of a destination."""
        with closing(open_ledger(self.home / "spool")) as db:
            rows = db.execute(
                "select j.id, j.key from job j join destination d on d.id = j.destination_id where d.name = ?", [name]
            ).fetchall()
            return b"".join(one.body for row in rows for one in job.bodies(db, row["id"], row["key"]))


@pytest.fixture
def machine(tmp_path: Path, migrated: Path) -> Iterator[Fanned]:
    shutil.copytree(migrated, tmp_path / "spool")
    made = Fanned(tmp_path)
    yield made
    for one in list(made.hooks):
        made.leave(one)


def later(name: str = "a") -> Fields:
    """One turn from before the receiver was named, one from after."""
    return talk(name, *asked_and_answered(), *followed_up(BEGUN_MS + 100), at_ms=BEGUN_MS + 200)


def show(one: Hook, session: str) -> None:
    one.take(notice(session, "idle"))
    look_for(one)


def compare(one: Hook) -> None:
    """All that no notice led to."""
    while (outlet := one.opened.to_reconcile(0)) is not None:
        capture_of = partial(one.opened.captures.of, name=outlet.name)
        outlet.reconciling.step(capture_of, (), now_s=0, now_ms=CREATED_MS + 1_000)


def test_a_turn_is_one_job_for_each_destination_and_helicones_is_first(machine: Fanned) -> None:
    machine.name(begun_ms=0)
    session = machine.remember(later())
    show(machine.hook(), session)
    names, turns = ("helicone", "phoenix"), ("msg_a_1", "msg_a_3")
    assert machine.turns() == [(name, turn, "pending") for name in names for turn in turns]


def test_a_new_destination_gets_nothing_of_the_past_by_itself(machine: Fanned) -> None:
    machine.name()
    session = machine.remember(later())
    show(machine.hook(), session)
    assert [turn for turn in machine.turns() if turn[0] == "phoenix"] == [("phoenix", "msg_a_3", "pending")]
    assert len(machine.turns()) == 3


def test_what_no_notice_led_to_is_found_for_each_destination_since_it_was_named(machine: Fanned) -> None:
    machine.capture_since(CREATED_MS)
    machine.name()
    machine.remember(later())
    machine.remember(talk("old", *asked_and_answered(), at_ms=CREATED_MS + 100))
    compare(machine.hook())
    found = machine.turns()
    assert [turn for turn in found if turn[0] == "phoenix"] == [("phoenix", "msg_a_3", "pending")]
    assert len([turn for turn in found if turn[0] == "helicone"]) == 3


def test_a_header_that_is_not_known_here_keeps_one_destination_back_until_it_is(machine: Fanned) -> None:
    machine.capture_since(CREATED_MS)
    machine.name()
    del machine.variables["PHOENIX_AUTHORIZATION"]
    session = machine.remember(later())
    one = machine.hook()
    show(one, session)
    assert {name for name, _, _ in machine.turns()} == {"helicone"}
    assert "destinations.phoenix: it gets nothing" in (machine.home / "spool" / "logs" / "hook.log").read_text()
    noted = [what for what, _, _ in incidents.incidents(one.opened.db)]
    assert any(what.startswith("destinations.phoenix: it gets nothing: headers.Authorization") for what in noted)
    machine.end(one)
    machine.variables["PHOENIX_AUTHORIZATION"] = "Bearer abc"
    compare(machine.hook())
    assert [turn for turn in machine.turns() if turn[0] == "phoenix"] == [("phoenix", "msg_a_3", "pending")]


def test_a_failure_for_one_destination_leaves_the_others_their_jobs_and_the_notice_owed(
    machine: Fanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.name(begun_ms=0)
    one, looked = machine.hook(), Reader.look

    def fails(self: Reader, root: str, request: object) -> object:
        if self is one.opened.outlets[1].reader:
            raise ArithmeticError(root)
        return looked(self, root, request)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "look", fails)
        show(one, machine.remember(later()))
    assert {name for name, _, _ in machine.turns()} == {"helicone"}
    with closing(open_ledger(machine.home / "spool")) as db:
        assert "ArithmeticError" in str([unread.reason for unread in notices.unread(db)])
    show(one, "ses_a")
    assert {name for name, _, _ in machine.turns()} == {"helicone", "phoenix"}
    assert len(machine.turns()) == 4


def test_a_destination_without_texts_beside_one_that_gets_them(machine: Fanned) -> None:
    machine.name(PHOENIX + 'exportMode = "metadata_only"\n', begun_ms=0)
    told = user("msg_1", CREATED_MS + 10, text("a word of mine")), assistant("msg_2", CREATED_MS + 20)
    show(machine.hook(), machine.remember(talk("a", *told)))
    assert b"a word of mine" in machine.shown_to("")
    assert machine.shown_to("phoenix")
    assert b"a word of mine" not in machine.shown_to("phoenix")
    assert {name for name, _, _ in machine.turns()} == {"helicone", "phoenix"}


def test_helicone_can_be_switched_off_beside_another_destination(machine: Fanned) -> None:
    machine.capture_since(CREATED_MS)
    machine.name('[destinations.helicone]\nexportMode = "off"\n' + PHOENIX, begun_ms=0)
    session = machine.remember(later())
    one = machine.hook()
    show(one, session)
    assert machine.turns() == [
        ("helicone", "msg_a_1", "dropped"),
        ("helicone", "msg_a_3", "dropped"),
        ("phoenix", "msg_a_1", "pending"),
        ("phoenix", "msg_a_3", "pending"),
    ]
    machine.remember(talk("b", *asked_and_answered(BEGUN_MS)))
    machine.end(one)
    assert ("phoenix", "msg_b_1", "pending") in machine.turns()


def test_a_pattern_of_its_own_that_does_not_compile_keeps_that_destination_back(machine: Fanned) -> None:
    machine.name(begun_ms=0)
    machine.name(PHOENIX + 'redactPatterns = ["("]\n', begun_ms=0)
    show(machine.hook(), machine.remember(later()))
    assert {name for name, _, _ in machine.turns()} == {"helicone"}
    assert "destination phoenix gets nothing" in (machine.home / "spool" / "logs" / "hook.log").read_text()


def test_what_is_deleted_in_opencode_is_dropped_for_all(machine: Fanned) -> None:
    machine.name(begun_ms=0)
    session = machine.remember(later())
    one = machine.hook()
    show(one, session)
    machine.forget(session)
    one.take(notice(session, "deleted"))
    assert {state for _, _, state in machine.turns()} == {"dropped"}
    assert len(machine.turns()) == 4


def test_a_destination_that_settings_name_no_more_gets_nothing_from_a_hook_that_runs(machine: Fanned) -> None:
    machine.name(begun_ms=0)
    one = machine.hook()
    show(one, machine.remember(later()))
    assert len(machine.turns()) == 4
    (machine.home / "config" / "config.toml").write_text("", "utf-8")
    show(one, machine.remember(talk("b", *asked_and_answered())))
    assert len(machine.turns()) == 5
    assert machine.turns()[-1][0] == "helicone"


def test_what_one_destination_has_no_room_for_stays_with_the_others(machine: Fanned) -> None:
    machine.name(begun_ms=0)
    one = machine.hook()
    show(one, machine.remember(later()))
    with closing(open_ledger(machine.home / "spool")) as db:
        assert pruning.drop_oversize(db, CREATED_MS, 0, room=one.opened.outlets[1].target.id) > 0
    assert {(name, state) for name, _, state in machine.turns()} == {("helicone", "pending"), ("phoenix", "dropped")}


def test_the_path_prefix_of_helicone_is_no_part_of_the_others_keys(machine: Fanned) -> None:
    machine.name(begun_ms=0)
    one = machine.hook()
    before = {name: one.opened.captures.by_folder(name) for name in ("helicone", "phoenix")}
    machine.name('sessionPathPrefix = "/mine"\n' + PHOENIX, begun_ms=0)
    one.opened.captures.refresh()
    for name, changes in (("helicone", True), ("phoenix", False)):
        (then,), (now,) = before[name].values(), one.opened.captures.by_folder(name).values()
        assert then is not None
        assert now is not None
        policies: list[Policy] = [then.policy, now.policy]
        assert (policies[0].digest("") != policies[1].digest("")) is changes

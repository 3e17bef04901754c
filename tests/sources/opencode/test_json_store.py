"""The JSON files of OpenCode 1.0 and 1.1, alone and beside a newer OpenCode's store."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.sources.opencode.access import StoreError
from app.sources.opencode.rows import subagent
from app.sources.opencode.store import Store, store_file
from app.transcript.model import UNREADABLE, Other
from app.transcript.parse import parse
from tests.sources.opencode.test_store import built
from tests.sources.opencode.test_turns import Random, told
from tests.support.json_store import put
from tests.support.opencode import install_opencode, installed_opencode
from tests.support.processes import Station, hook
from tests.support.recorded import export, exported
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.opencode"]


def keys(store: Store) -> dict[str, str]:
    """Of all turns."""
    found = [store.transcript(root.id) for root in store.roots()]
    return {turn.id: turn.digest for one in found if one is not None for turn in one.turns}


@pytest.mark.parametrize("name", exported())
def test_json_files_tell_what_the_tables_tell(tmp_path: Path, name: str) -> None:
    wanted = export(name)
    (tmp_path / "tables").mkdir()
    tables, store = Store(built(tmp_path / "tables" / "opencode.db", wanted)), Store(put(tmp_path, wanted))
    root = wanted["root"]
    assert store.transcript(root) == tables.transcript(root) == parse(wanted)
    assert store.roots() == tables.roots()
    assert [json.loads(file.data or b"") for file in store.files(root)] == [
        json.loads(file.data or b"") for file in tables.files(root)
    ]
    for entry in wanted["sessions"]:
        session = entry["info"]["id"]
        assert store.root_of(session) == tables.root_of(session)
    of_files, of_tables = store.outline(root), tables.outline(root)
    assert of_files is not None
    assert of_tables is not None
    assert [(one.turn, one.rows) for one in of_files.turns] == [(one.turn, one.rows) for one in of_tables.turns]
    assert of_files.updated_ms == of_tables.updated_ms


@pytest.mark.parametrize("seed", range(40))
def test_turns_in_json_files_are_read_apart_as_in_the_whole(tmp_path: Path, seed: int) -> None:
    wanted = Random(seed).family()
    store = Store(put(tmp_path, wanted))
    whole = store.transcript(wanted["root"])
    assert whole is not None
    assert [turn.digest for turn in whole.turns] == [turn.digest for turn in parse(wanted).turns]
    for turn in whole.turns:
        found = store.transcript(wanted["root"], {turn.id})
        assert found is not None
        assert (found.session, told(found.turns)) == (whole.session, told([turn]))
        assert store.turn(wanted["root"], turn.id) == found
        assert store.holds(wanted["root"], turn.id)


def test_what_is_written_shows_when_it_was(tmp_path: Path) -> None:
    wanted = export("f_subagent")
    store = Store(put(tmp_path, wanted))
    child = wanted["sessions"][1]
    part = child["messages"][-1]["parts"][-1]
    before = store.outline(wanted["root"])
    assert before is not None
    later_s = 4_102_444_800
    os.utime(tmp_path / "storage" / "part" / part["messageID"] / f"{part['id']}.json", (later_s, later_s))
    after = store.outline(wanted["root"])
    assert after is not None
    (changed,) = set(after.turns) - set(before.turns)
    assert changed.updated_ms == store.changed_ms(wanted["root"]) == later_s * 1000
    directory = wanted["sessions"][0]["info"]["directory"]
    assert store.changes(directory) == {wanted["root"]: later_s * 1000, child["info"]["id"]: later_s * 1000}
    assert store.changes("/elsewhere") == {}


FILES = {
    "session": "session/*/*.json",
    "message": "message/*/*.json",
    "part": "part/*/*.json",
}


@pytest.mark.parametrize("left", [0, 1, 40], ids=["empty", "begun", "cut"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_being_written_is_read_a_moment_later(tmp_path: Path, kind: str, left: int) -> None:
    wanted, other = export("a_simple"), export("b_tools")
    store = Store(put(tmp_path, wanted, other))
    file = next(
        path
        for path in sorted((tmp_path / "storage").glob(FILES[kind]))
        if wanted["root"] in path.read_text().replace(" ", "")
    )
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    with pytest.raises(StoreError, match=rf"{file.name} is being written"):
        store.transcript(wanted["root"])
    if kind != "session":
        assert store.transcript(other["root"]) == parse(other)
    file.write_bytes(whole)
    assert store.transcript(wanted["root"]) == parse(wanted)


@pytest.mark.parametrize("left", [0, 40, -1], ids=["empty", "begun", "cut"])
@pytest.mark.parametrize("kind", ["message", "part"])
def test_a_file_that_is_being_written_costs_its_own_session_alone(tmp_path: Path, kind: str, left: int) -> None:
    family, other = export("f_subagent"), export("a_simple")
    store = Store(put(tmp_path, family, other))
    changes = store.changes(other["sessions"][0]["info"]["directory"])
    parts = (part for message in family["sessions"][0]["messages"] for part in message["parts"])
    call = next(part for part in parts if subagent(part))
    folder, name = (family["root"], call["messageID"]) if kind == "message" else (call["messageID"], call["id"])
    file = tmp_path / "storage" / kind / folder / f"{name}.json"
    file.write_bytes(file.read_bytes()[:left])
    store = Store(store.path)
    assert {root.id for root in store.roots()} == {family["root"], other["root"]}
    assert set(store.changes(other["sessions"][0]["info"]["directory"])) == set(changes)
    assert store.changed_ms(family["root"]) is not None
    assert store.outline(other["root"]) is not None
    assert store.root_of(other["root"]) == other["root"]
    with pytest.raises(StoreError, match=rf"{file.name} is being written"):
        store.outline(family["root"])


def test_a_file_that_stays_torn_costs_itself_and_is_told(tmp_path: Path) -> None:
    wanted = export("a_simple")
    store = Store(put(tmp_path, wanted))
    (user, answer), (first, *_) = wanted["sessions"][0]["messages"], parse(wanted).turns
    part = tmp_path / "storage" / "part" / answer["info"]["id"] / f"{answer['parts'][0]['id']}.json"
    part.write_text('{"secret-word')
    os.utime(part, (1, 1))
    found = store.transcript(wanted["root"])
    assert found is not None
    (turn,) = found.turns
    assert (turn.id, turn.digest == first.digest) == (user["info"]["id"], False)
    assert [one.type for one in turn.messages[1].parts if isinstance(one, Other)].count(UNREADABLE) == 1
    message = tmp_path / "storage" / "message" / wanted["root"] / f"{answer['info']['id']}.json"
    message.write_text("")
    os.utime(message, (1, 1))
    found = Store(store.path).transcript(wanted["root"])
    assert found is not None
    assert [one.turn for one in found.unreadable] == [answer["info"]["id"]]
    assert "secret-word" not in repr(found)


@pytest.mark.parametrize("why", ["torn", "unreadable"])
def test_a_session_whose_file_cannot_be_read_costs_itself(tmp_path: Path, why: str) -> None:
    family, other = export("f_subagent"), export("a_simple")
    store = Store(put(tmp_path, family, other))
    directory = other["sessions"][0]["info"]["directory"]
    file = next((tmp_path / "storage" / "session").glob(f"*/{family['root']}.json"))
    if why == "torn":
        file.write_text("{")
    else:
        file.unlink()
        file.mkdir()
    assert {other["root"], family["root"]} <= {root.id for root in store.roots()}
    assert other["root"] in {root.id for root in store.roots(directory)} & set(store.changes(directory))
    assert store.transcript(other["root"]) == parse(other)
    with pytest.raises(StoreError, match="cannot be read: ses_"):
        store.root_of(family["root"])


def test_a_folder_that_cannot_be_listed_is_none_that_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, other = export("a_simple"), export("b_tools")
    store = Store(put(tmp_path, wanted, other))
    listdir = os.listdir

    def refused(folder: Path) -> list[str]:
        if wanted["root"] in str(folder):
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(StoreError, match="Permission denied"):
        store.outline(wanted["root"])
    assert store.transcript(other["root"]) == parse(other)


def test_a_parent_that_cannot_be_a_file_is_none(tmp_path: Path) -> None:
    wanted, odd = export("a_simple"), export("b_tools")
    odd["sessions"][0]["info"]["parentID"] = "x" * 300
    store = Store(put(tmp_path, wanted, odd))
    assert {root.id for root in store.roots()} == {wanted["root"], odd["root"]}
    assert store.root_of(odd["root"]) == odd["root"]


def test_a_name_that_is_none_leads_nowhere(tmp_path: Path) -> None:
    store = Store(put(tmp_path, export("a_simple")))
    for name in ("*", "../*/*", "ses_*", "", "ses_nowhere", "x" * 300, "\0"):
        assert store.root_of(name) is None
        assert store.outline(name) is None
        assert store.transcript(name) is None


# --- beside a newer OpenCode's store


def test_what_a_newer_opencode_has_not_migrated_is_read_beside_its_own(tmp_path: Path) -> None:
    old, new = export("b_tools"), export("a_simple")
    put(tmp_path, old)
    store = Store(built(tmp_path / "opencode.db", new))
    assert {root.id for root in store.roots()} == {old["root"], new["root"]}
    assert store.transcript(old["root"]) == parse(old)
    assert store.transcript(new["root"]) == parse(new)
    assert store.changed_ms(old["root"]) is not None
    directory = old["sessions"][0]["info"]["directory"]
    assert old["root"] in store.changes(directory)


def test_of_a_session_in_both_the_tables_are_right(tmp_path: Path) -> None:
    wanted, renamed = export("a_simple"), export("a_simple")
    renamed["sessions"][0]["info"]["title"] = "what 1.18 made of it"
    put(tmp_path, wanted)
    store = Store(built(tmp_path / "opencode.db", renamed))
    assert [root.id for root in store.roots()] == [wanted["root"]]
    assert store.transcript(wanted["root"]) == parse(renamed)


def test_what_was_deleted_after_it_was_migrated_does_not_come_back(tmp_path: Path) -> None:
    kept, deleted, later = export("a_simple"), export("b_tools"), export("f_subagent")
    for created_ms, one in enumerate((deleted, kept, later), 1_000):
        for entry in one["sessions"]:
            entry["info"]["time"]["created"] = created_ms
    put(tmp_path, deleted, kept, later)  # the last by an old OpenCode that was used again
    store = Store(built(tmp_path / "opencode.db", kept))
    assert [root.id for root in store.roots()] == [kept["root"], later["root"]]
    assert store.root_of(deleted["root"]) is None
    assert store.transcript(deleted["root"]) is None
    assert store.root_of(later["sessions"][1]["info"]["id"]) == later["root"]


@pytest.mark.opencode
@pytest.mark.matrix
@pytest.mark.parametrize(
    ("old", "newer"), [("1.1.65", "1.15.4"), ("1.1.65", "1.18.33"), ("1.0.185", "1.17.11")], ids="-".join
)
def test_what_opencode_kept_in_json_has_the_same_keys_after_an_upgrade(tmp_path: Path, old: str, newer: str) -> None:
    with installed_opencode(tmp_path / "opencode", old) as opencode:
        project = opencode.project(tmp_path / "project")
        prompts = ("[[script:hello]] hello", "[[script:hello]] again")
        for prompt in prompts if old < "1.1" else (*prompts, "[[script:tools]] do it"):  # 1.0 fetches a tool for tools
            assert opencode.run(project, prompt).exit_code == 0
        store = Store(opencode.home / ".local" / "share" / "opencode" / "opencode.db")
        before = keys(store)
        assert not store.path.exists()
        assert len([root for root in store.roots() if root.directory == str(project)]) == 2 + (old > "1.1")
        whole = [store.transcript(root.id) for root in store.roots(str(project))]
        assert all(turn.final and not turn.faults for one in whole if one is not None for turn in one.turns)
        upgraded = replace(opencode, binary=install_opencode(newer))
        assert upgraded.run(project, "[[script:hello]] later").exit_code == 0
        with closing(sqlite3.connect(store.path)) as db:
            (rows,) = db.execute("select count(*) from session").fetchone()
        assert rows == (1 if newer > "1.17" else len(before) + 1)
        after = keys(store)
        assert len(after) == len(before) + 1
        assert before.items() <= after.items()


# --- by notice


def taken(station: Station) -> list[str]:
    with station.ledger() as db:
        return [
            name for (name,) in db.execute("select t.name from job j join turn t on t.id = j.turn_id order by j.id")
        ]


@pytest.mark.slow
def test_a_notice_brings_what_stands_in_json_files_and_what_was_torn_a_moment_later(tmp_path: Path) -> None:
    station = Station(tmp_path / "home", "http://127.0.0.1:9")
    folder = store_file(station.environ).parent
    wanted, other = export("a_simple"), export("b_tools")
    put(folder, wanted, other)
    part = wanted["sessions"][0]["messages"][-1]["parts"][-1]
    file = folder / "storage" / "part" / part["messageID"] / f"{part['id']}.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:20])
    with hook(station) as running:
        running.notice(other["root"])
        running.notice(wanted["root"])
        running.wait_for_ack()
        assert set(taken(station)) == {"session", *(turn.id for turn in parse(other).turns)}
        file.write_bytes(whole)
        names = {turn.id for one in (wanted, other) for turn in parse(one).turns}
        wait_until(lambda: names <= set(taken(station)))
    assert len(taken(station)) == len(names) + 2

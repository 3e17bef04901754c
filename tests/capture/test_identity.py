"""What a session keeps for ever: how its records are written, and its name, wherever `/move` takes it."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from app.capture.enqueue import Place
from app.ledger import adoption, destinations, versions
from app.ledger.decision import REFILL
from app.transcript.identity import Identity
from tests.capture.test_enqueue import EmbeddedApi, capture
from tests.support.snapshots import CREATED_MS, SESSION, Fields, assistant, entry, snapshot, task, text, user


@pytest.fixture
def embedded(db: sqlite3.Connection) -> EmbeddedApi:
    target = destinations.destination(db, "https://example.invalid", "fingerprint", 0)
    return EmbeddedApi(db, Place(target.id, "folder"))


THERE = "/home/dev/project"
MOVED = "/home/dev/elsewhere"


def answered(n: int, cwd: str | None = THERE) -> tuple[Fields, Fields]:
    asked = user(f"msg_{2 * n - 1}", CREATED_MS + 1_000 * n, text("ask", f"prt_{2 * n - 1}"))
    told = {} if cwd is None else {"path": {"cwd": cwd, "root": "/"}}
    answer = text("tell", f"prt_{2 * n}")
    return asked, assistant(f"msg_{2 * n}", CREATED_MS + 1_000 * n + 10, answer, parent=f"msg_{2 * n - 1}", **told)


def talk(*turns: tuple[Fields, Fields], directory: str = THERE) -> Fields:
    return snapshot(entry(*(message for turn in turns for message in turn), directory=directory))


def known_before(embedded: EmbeddedApi) -> None:
    """The session's row as a migration leaves it."""
    embedded.db.execute(
        "insert into session (destination_id, name, root_name, user_id, folder) values (?, ?, ?, '', ?)",
        (embedded.place.destination_id, SESSION, SESSION, embedded.place.folder),
    )


def metas(embedded: EmbeddedApi) -> list[dict[str, str]]:
    return [body["providerRequest"]["meta"] for body in embedded.bodies()]


def names(embedded: EmbeddedApi) -> list[str]:
    """Of what is current, in the order in which it was captured."""
    return list(dict.fromkeys(meta["Helicone-Session-Name"] for meta in metas(embedded)))


def projects(embedded: EmbeddedApi) -> set[str | None]:
    return {meta.get("Helicone-Property-project") for meta in metas(embedded)}


def models(embedded: EmbeddedApi) -> set[str]:
    return {model(body) for body in embedded.bodies()}


def model(body: Any) -> str:
    request = body["providerRequest"]["json"]
    return str(request.get("model") or request["_type"])


def test_a_session_keeps_its_name_when_it_is_moved(embedded: EmbeddedApi) -> None:
    embedded.put(talk(answered(1)))
    embedded.put(talk(answered(1), answered(2, MOVED), directory=MOVED))
    assert (names(embedded), projects(embedded)) == (["opencode: project"], {"project"})
    assert models(embedded) == {"opencode/session", "opencode/user", "anthropic/claude-x"}


@pytest.mark.parametrize(("cwd", "name"), [(THERE, "project"), (None, "elsewhere")], ids=["told", "not told"])
def test_a_session_moved_before_it_is_seen_is_named_after_where_it_began(
    embedded: EmbeddedApi, cwd: str | None, name: str
) -> None:
    embedded.put(talk(answered(1, cwd), directory=MOVED))
    assert names(embedded) == [f"opencode: {name}"]


def test_a_turn_stays_what_it_was_when_its_session_is_moved(embedded: EmbeddedApi) -> None:
    embedded.put(talk(answered(1)))
    (before,) = [body.digest for body in embedded.stored() if b"opencode/user" in body.body]
    embedded.put(talk(answered(1), directory=MOVED), reopen=REFILL)
    (after,) = [body.digest for body in embedded.stored() if b"opencode/user" in body.body]
    assert after == before


def test_a_session_known_before_goes_on_as_it_was(embedded: EmbeddedApi) -> None:
    known_before(embedded)
    embedded.put(talk(answered(1)))
    embedded.put(talk(answered(1), answered(2, MOVED), directory=MOVED))
    assert names(embedded) == ["opencode: project"]
    assert models(embedded) == {"data", "anthropic/claude-x"}


def test_a_session_known_before_of_which_no_name_is_kept_is_named_as_before(embedded: EmbeddedApi) -> None:
    known_before(embedded)
    embedded.put(talk(answered(1), directory=MOVED))
    assert names(embedded) == ["opencode: elsewhere"]


@pytest.mark.parametrize("encoding", [1, 2])
def test_a_name_is_withheld_by_what_is_set_later(embedded: EmbeddedApi, encoding: int) -> None:
    if encoding == 1:
        known_before(embedded)
    embedded.put(talk(answered(1)))
    hidden = capture(patterns=("dev/project",))
    embedded.put(talk(answered(1), answered(2)), hidden)
    assert names(embedded) == ["opencode: [REDACTED]"]
    embedded.put(talk(answered(1), answered(2), answered(3)), capture("metadata_only"))
    assert names(embedded) == ["opencode"]
    embedded.put(talk(answered(1), answered(2), answered(3), answered(4), directory=MOVED), hidden)
    assert "project" not in projects(embedded)
    assert not {"opencode: project", "opencode: elsewhere"} & set(names(embedded))


def test_a_name_is_kept_as_it_may_leave(embedded: EmbeddedApi) -> None:
    embedded.put(talk(answered(1)), capture(patterns=("proj",)))
    embedded.put(talk(answered(1), answered(2)), capture())
    assert embedded.db.execute("select shown_name from session").fetchone()[0] == "opencode: [REDACTED]ect"
    assert names(embedded) == ["opencode: [REDACTED]ect"]


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("\u9879\u76ee", "XiangMu"),
        ("cafe\u0301", "caf\u00e9"),
        ("sec\u200bret", "secret"),
        ("\uff53\uff45\uff43\uff52\uff45\uff54", "secret"),
    ],
    ids=["in Latin letters", "composed", "invisible", "wide"],
)
def test_a_pattern_that_fits_a_name_as_helicone_shows_it_withholds_it(
    embedded: EmbeddedApi, folder: str, pattern: str
) -> None:
    there = f"/home/dev/{folder}"
    told = talk(answered(1, there), directory=there)
    told["sessions"][0]["messages"][1]["info"]["agent"] = folder
    embedded.put(told, capture(patterns=(pattern,)))
    assert (names(embedded), projects(embedded)) == (["opencode: [REDACTED]"], {"[REDACTED]"})
    assert embedded.db.execute("select shown_name from session").fetchone()[0] == "opencode: [REDACTED]"
    assert {meta.get("Helicone-Property-agent") for meta in metas(embedded)} == {"[REDACTED]", "build", None}


def test_a_session_without_a_name_stays_without_one(embedded: EmbeddedApi) -> None:
    embedded.put(talk(answered(1)), capture("metadata_only"))
    embedded.put(talk(answered(1), answered(2)))
    assert names(embedded) == ["opencode"]


def test_nothing_of_a_name_is_kept_while_export_is_off(embedded: EmbeddedApi) -> None:
    embedded.put(talk(answered(1)), capture("off"))
    assert embedded.db.execute("select encoding, shown_name from session").fetchone()[:] == (2, None)
    embedded.put(talk(answered(1), answered(2)))
    assert embedded.db.execute("select encoding, shown_name from session").fetchone()[:] == (2, "opencode: project")


def test_a_session_known_before_to_another_destination_is_written_as_there(embedded: EmbeddedApi) -> None:
    """Two keys may be of one organisation, and its rows are the same rows."""
    known_before(embedded)
    other = destinations.destination(embedded.db, "https://example.invalid", "another key", 0)
    replace(embedded, place=Place(other.id, "folder")).put(talk(answered(1)))
    assert models(embedded) == {"data", "anthropic/claude-x"}


def test_a_root_goes_on_as_its_subagent_began(embedded: EmbeddedApi) -> None:
    known_before(embedded)
    child = entry(*answered(1))
    calling = assistant("msg_b", CREATED_MS + 20, task(SESSION), parent="msg_a")
    root = entry(user("msg_a", CREATED_MS + 10, text("ask")), calling, name="ses_parent")
    child["info"]["parentID"] = "ses_parent"
    embedded.put(snapshot(root, child))
    identity = Identity("", 1, "opencode: project")
    assert versions.session_identity(embedded.db, embedded.place.destination_id, "ses_parent") == (
        "ses_parent",
        identity,
    )
    assert models(embedded) == {"data", "tool", "anthropic/claude-x"}


def test_a_session_that_changes_its_destination_stays_what_it_is(embedded: EmbeddedApi) -> None:
    embedded.put(talk(answered(1)))
    other = destinations.destination(embedded.db, "https://example.invalid", "another key", 0)
    adoption.adopt(embedded.db, embedded.place.destination_id, other.id, now_ms=1)
    there = replace(embedded, place=Place(other.id, "folder"))
    there.put(talk(answered(1), answered(2, MOVED), directory=MOVED))
    assert versions.session_identity(embedded.db, other.id, SESSION) == (SESSION, Identity("", 2, "opencode: project"))
    assert names(embedded) == ["opencode: project"]

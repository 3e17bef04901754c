from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.capture.enqueue import Enqueued, Place, Request, decisions_on, enqueue
from app.database.connection import connect
from app.database.open import open_ledger
from app.ledger import counts, destinations, versions
from app.ledger import counts as ledger_counts
from app.ledger import job as ledger_job
from app.ledger.decision import LIVE, Decision, Reopen
from app.ledger.job import Body, Version
from app.privacy.policy import Mode, Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.transcript.identity import Identity
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.snapshots import (
    CREATED_MS,
    Fields,
    assistant,
    entry,
    snapshot,
    task,
    text,
    tool,
    unfinished,
    user,
)

NOW_MS = 5_000_000


def capture(
    mode: Mode = "full", patterns: tuple[str, ...] = (), user_id: str = "", known: tuple[str, ...] = ()
) -> Capture:
    return Capture(
        policy=Policy(mode=mode, patterns=patterns, redact_secrets=True, prefix="/opencode"),
        redaction=Redaction.compile(patterns, secrets=True, known_values=known),
        user_id=user_id,
    )


@dataclass
class EmbeddedApi:
    """The way in, as an embedding program uses it."""

    db: sqlite3.Connection
    place: Place
    woken: list[str] = field(default_factory=list)

    def put(
        self, told: Fields, how: Capture | None = None, *, abandoned: bool = False, reopen: Reopen = LIVE
    ) -> Enqueued:
        return enqueue(
            self.db,
            parse(told),
            how or capture(),
            self.place,
            now_ms=NOW_MS,
            wake=self.woken.append,
            request=Request(abandoned=abandoned, reopen=reopen),
        )

    def states(self) -> dict[str, str]:
        """What is current, by session and turn."""
        rows = self.db.execute(
            "select s.name as session, t.name as turn, j.state from job j join turn t on t.id = j.turn_id"
            " join session s on s.id = j.session_id where j.state <> 'superseded'"
        )
        return {f"{row['session']} {row['turn']}": row["state"] for row in rows}

    def bodies(self) -> list[Any]:
        return [json.loads(body.body) for body in self.stored()]

    def stored(self) -> list[Body]:
        jobs = self.db.execute("select id, key from job order by id").fetchall()
        return [body for job in jobs for body in ledger_job.bodies(self.db, job["id"], job["key"])]


@pytest.fixture
def embedded(db: sqlite3.Connection) -> EmbeddedApi:
    db.execute("pragma synchronous = off")  # nobody cuts the power here
    target = destinations.destination(db, "https://example.invalid", "fingerprint", 0)
    return EmbeddedApi(db, Place(target.id, "folder"))


TURN = (user("msg_1", CREATED_MS + 10, text("ask")), assistant("msg_2", CREATED_MS + 20, text("tell")))
LATER = (
    user("msg_3", CREATED_MS + 1_000, text("more", "prt_3")),
    assistant("msg_4", CREATED_MS + 1_010, text("told", "prt_4"), parent="msg_3"),
)
BEGUN = (user("msg_1", CREATED_MS + 10, text("ask")), unfinished("msg_2", CREATED_MS + 20, text("tel")))


def one(*messages: Fields, **info: Any) -> Fields:
    return snapshot(entry(*messages, **info))


# --- the documented call


def test_embedding_program_needs_a_ledger_and_a_transcript_alone(spool: Path) -> None:
    woken: list[str] = []
    with closing(open_ledger(spool)) as db:
        target = destinations.destination(db, "", "", NOW_MS)
        done = enqueue(db, parse(one(*TURN)), capture(), Place(target.id, ""), now_ms=NOW_MS, wake=woken.append)
        assert (done.new, len(done.keys), done.waiting, done.under) == (2, 2, [], None)
        assert woken == done.keys[:1]
        assert counts.counts(db, target.id).pending == 2


def test_records_of_a_turn_are_kept_in_order_and_byte_for_byte(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    paths = [body["providerRequest"]["meta"]["Helicone-Session-Path"] for body in embedded.bodies()]
    assert paths == ["/opencode/ses_root", "/opencode/ses_root/msg-0", "/opencode/ses_root/msg-1"]
    digests = [row["digest"] for row in embedded.db.execute("select digest from record order by job_id, position")]
    assert [body.digest for body in embedded.stored()] == digests


def test_same_transcript_again_changes_nothing_and_rings_nobody(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    embedded.woken.clear()
    before = embedded.db.total_changes
    done = embedded.put(one(*TURN))
    assert (done.new, done.known, done.keys, embedded.woken) == (0, 2, [], [])
    assert embedded.db.total_changes == before


def test_what_is_known_is_seen_again_in_the_transaction_of_what_is_new(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    said: list[str] = []
    embedded.db.set_trace_callback(said.append)
    embedded.put(one(*TURN, *LATER))
    embedded.db.set_trace_callback(None)
    outside, is_open = list[str](), False
    for statement in said:
        word = statement.split()[0].lower()
        is_open = word == "begin" or (is_open and word not in {"commit", "rollback"})
        if word in {"insert", "update", "delete"} and not is_open:
            outside.append(statement)
    assert outside == []
    assert sum(statement == "commit" for statement in said) == 1


def test_only_the_new_turn_is_new(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    done = embedded.put(one(*TURN, *LATER))
    assert (done.new, done.known) == (1, 2)
    assert embedded.states() == dict.fromkeys(("ses_root session", "ses_root msg_1", "ses_root msg_3"), "pending")


def all_delivered(embedded: EmbeddedApi) -> None:
    embedded.db.execute("update job set state = 'delivered', due_ms = null, finished_ms = 1, body_bytes = 0")


STRICTER = (capture("metadata_only"), capture(patterns=("whale",)))


@pytest.mark.parametrize("strict", STRICTER)
def test_what_was_delivered_under_a_stricter_policy_is_not_sent_again_under_a_looser_one(
    embedded: EmbeddedApi, strict: Capture
) -> None:
    embedded.put(one(*TURN), strict)
    all_delivered(embedded)
    updated = {"created": CREATED_MS, "updated": CREATED_MS + 2_000}
    done = embedded.put(one(*TURN), capture())
    assert (done.new, done.known) == (0, 2)
    told = decisions_on(embedded.db, parse(one(*TURN)), capture(), embedded.place)
    assert {decision for _, decision in told} == {Decision.KNOWN}
    embedded.put(one(*TURN, *LATER, time=updated), capture())
    assert embedded.states()["ses_root msg_1"] == embedded.states()["ses_root session"] == "delivered"
    assert embedded.states()["ses_root msg_3"] == "pending"
    # A person who hands the session over means what he says.
    assert embedded.put(one(*TURN), capture(), reopen=Reopen(stricter=True)).keys


@pytest.mark.parametrize("strict", STRICTER)
@pytest.mark.parametrize("state", ["pending", "dead"])
def test_what_waits_under_a_stricter_policy_stays_as_it_is_when_a_looser_one_comes(
    embedded: EmbeddedApi, strict: Capture, state: str
) -> None:
    embedded.put(one(*TURN), strict)
    if state == "dead":
        embedded.db.execute("update job set state = 'dead', due_ms = null, finished_ms = ?", (NOW_MS,))
    made = embedded.stored()
    embedded.put(one(*TURN, *LATER), capture())
    assert embedded.states()["ses_root msg_1"] == embedded.states()["ses_root session"] == state
    assert embedded.states()["ses_root msg_3"] == "pending"
    assert embedded.stored()[: len(made)] == made
    assert embedded.put(one(*TURN), capture(), reopen=Reopen(stricter=True)).keys


def overtaken(embedded: EmbeddedApi, told: Fields, what: Callable[[], None]) -> Enqueued:
    """Enqueued in full, while another process commits `what` after the first look at each turn."""
    return enqueue(
        embedded.db,
        parse(told),
        capture(),
        embedded.place,
        now_ms=NOW_MS,
        wake=embedded.woken.append,
        admit=lambda _: what(),
    )


def test_what_is_delivered_under_a_stricter_policy_meanwhile_is_not_sent_under_a_looser_one(
    embedded: EmbeddedApi,
) -> None:
    def other() -> None:
        embedded.put(one(*TURN), capture("metadata_only"))
        all_delivered(embedded)

    done = overtaken(embedded, one(*TURN), other)
    assert (done.new, done.known) == (0, 2)
    assert set(embedded.states().values()) == {"delivered"}


def test_a_subagent_that_is_sealed_meanwhile_does_not_come_with_its_parent(embedded: EmbeddedApi) -> None:
    def seal() -> None:
        blank = Version("ses_child", "ses_child", "msg_c1", "b" * 64, NOW_MS, "", "folder", is_sealed=True)
        if "ses_root session" in embedded.states():  # else the look at the turn itself is still to come
            versions.insert(embedded.db, embedded.place.destination_id, blank, [], now_ms=NOW_MS)

    done = overtaken(embedded, family(), seal)
    assert done.shut == 1
    assert "ses_child msg_c1" in embedded.states()
    assert not any(state == "pending" for turn, state in embedded.states().items() if turn.startswith("ses_root msg"))


def test_a_turn_that_changed_since_goes_under_the_policy_in_force(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN), capture("metadata_only"))
    all_delivered(embedded)
    changed = assistant("msg_2", CREATED_MS + 20, text("tell more"))
    assert embedded.put(one(TURN[0], changed), capture()).new == 1


@pytest.mark.parametrize("other", [capture("metadata_only"), capture(patterns=("b",))])
def test_a_stricter_policy_and_one_that_is_just_another_bring_again_what_was_delivered(
    embedded: EmbeddedApi, other: Capture
) -> None:
    embedded.put(one(*TURN), capture(patterns=("a",)))
    all_delivered(embedded)
    assert embedded.put(one(*TURN), other).new == 2


def test_session_without_a_turn_says_nothing(embedded: EmbeddedApi) -> None:
    done = embedded.put(one())
    assert done == Enqueued()
    assert embedded.states() == {}


def test_new_title_is_a_new_version_of_the_sessions_record_alone(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    time = {"created": CREATED_MS, "updated": CREATED_MS + 500}
    done = embedded.put(one(*TURN, title="a better title", time=time))
    assert (done.new, done.known) == (1, 1)
    assert embedded.put(one(*TURN)).known == 2
    (choice,) = embedded.bodies()[-1]["providerResponse"]["json"]["choices"]
    assert choice["message"]["content"] == "a better title"


# --- what is not final


def test_turn_that_is_not_final_waits(embedded: EmbeddedApi) -> None:
    done = embedded.put(one(*BEGUN))
    assert (done.new, [turn.id for turn in done.waiting]) == (1, ["msg_1"])
    assert embedded.states() == {"ses_root session": "pending"}
    assert embedded.put(one(*TURN)).new == 1
    assert embedded.states()["ses_root msg_1"] == "pending"


def test_question_without_an_answer_waits(embedded: EmbeddedApi) -> None:
    assert [turn.id for turn in embedded.put(one(*TURN, *LATER[:1])).waiting] == ["msg_3"]


def test_turn_with_a_running_tool_waits(embedded: EmbeddedApi) -> None:
    running = assistant("msg_2", CREATED_MS + 20, tool(status="running", output=None, title=None, time=None))
    assert [turn.id for turn in embedded.put(one(TURN[0], running)).waiting] == ["msg_1"]


def test_unfinished_turn_is_interrupted_when_a_later_question_follows(embedded: EmbeddedApi) -> None:
    done = embedded.put(one(*BEGUN, *LATER[:1]))
    assert (done.new, [turn.id for turn in done.waiting]) == (2, ["msg_3"])
    assert "interrupted" in json.dumps(embedded.bodies()[-1])


def test_unfinished_turn_of_an_abandoned_session_is_interrupted(embedded: EmbeddedApi) -> None:
    done = embedded.put(one(*BEGUN), abandoned=True)
    assert (done.new, done.waiting) == (2, [])
    assert "interrupted" in json.dumps(embedded.bodies()[-1])


def test_finished_turn_of_an_abandoned_session_is_not_interrupted(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN), abandoned=True)
    assert "interrupted" not in json.dumps(embedded.bodies())


def test_turn_completed_after_it_was_taken_for_interrupted_supersedes_that(embedded: EmbeddedApi) -> None:
    embedded.put(one(*BEGUN), abandoned=True)
    assert embedded.put(one(*TURN)).new == 1
    assert counts.counts(embedded.db).superseded == 1
    assert "interrupted" not in json.dumps(embedded.bodies())
    # And the unfinished one, should it be seen again, is older.
    assert embedded.put(one(*BEGUN), abandoned=True).new == 0


# --- policies


def test_another_policy_is_another_key_and_takes_the_others_place(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    done = embedded.put(one(*TURN), capture(patterns=("ask",)))
    assert done.new == 2
    counts = ledger_counts.counts(embedded.db)
    assert (counts.pending, counts.superseded) == (2, 2)
    assert "ask" not in json.dumps(embedded.bodies())


def test_policy_that_comes_back_reopens_its_versions(embedded: EmbeddedApi) -> None:
    done = embedded.put(one(*TURN))
    embedded.put(one(*TURN), capture(patterns=("ask",)))
    again = embedded.put(one(*TURN), reopen=Reopen(stricter=True))
    assert again.keys == done.keys
    assert counts.counts(embedded.db).pending == 2


def test_metadata_only_stores_no_text(embedded: EmbeddedApi, spool: Path) -> None:
    embedded.put(one(*TURN), capture("metadata_only"))
    stored = json.dumps(embedded.bodies())
    for content in ("ask", "tell", "a title", "project"):
        assert content not in stored
    assert "claude-x" in stored
    assert b"a title" not in b"".join(path.read_bytes() for path in spool.iterdir())


def test_off_counts_and_keeps_nothing(embedded: EmbeddedApi) -> None:
    done = embedded.put(one(*TURN), capture("off"))
    assert (done.off, done.new, done.keys, embedded.woken) == (2, 0, [], [])
    assert counts.counts(embedded.db).dropped_by_reason == {"off": 2}
    assert embedded.bodies() == []
    assert embedded.put(one(*TURN), capture("off")).known == 2


def test_what_was_captured_while_off_is_shut_until_asked(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN), capture("off"))
    assert (embedded.put(one(*TURN)).shut, embedded.woken) == (2, [])
    done = embedded.put(one(*TURN), reopen=Reopen(frozenset({"off"})))
    assert (done.new, embedded.woken) == (2, done.keys[:1])
    assert len(embedded.bodies()) == 3


def test_turns_after_export_was_switched_on_again_are_exported(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN), capture("off"))
    done = embedded.put(one(*TURN, *LATER))
    assert (done.new, done.shut) == (1, 2)
    assert embedded.states()["ses_root msg_3"] == "pending"


def test_off_hides_nothing_that_was_exported(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    embedded.db.execute("update job set state = 'delivered', due_ms = null, finished_ms = 1, body_bytes = 0")
    time = {"created": CREATED_MS, "updated": CREATED_MS + 2_000}
    done = embedded.put(one(*TURN, *LATER, time=time), capture("off"))
    assert (done.known, done.off) == (2, 1)
    assert (embedded.states()["ses_root msg_1"], embedded.states()["ses_root session"]) == ("delivered", "delivered")


# --- user id


def test_user_id_is_frozen_with_the_sessions_first_record(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN), capture(user_id="ann"))
    done = embedded.put(one(*TURN, *LATER), capture(user_id="bob"))
    assert (done.new, done.known) == (1, 2)
    assert {body["providerRequest"]["meta"]["Helicone-User-Id"] for body in embedded.bodies()} == {"ann"}


def test_root_takes_over_the_user_id_of_a_subagent_that_was_exported_before_it(embedded: EmbeddedApi) -> None:
    embedded.put(snapshot(child()), capture(user_id="ann"))
    embedded.put(family(), capture(user_id="bob"))
    assert {body["providerRequest"]["meta"]["Helicone-User-Id"] for body in embedded.bodies()} == {"ann"}


# --- subagents


def child() -> Fields:
    asked = user("msg_c1", CREATED_MS + 30, text("sub ask", "prt_c1"))
    told = assistant("msg_c2", CREATED_MS + 40, text("sub tell", "prt_c2"), parent="msg_c1")
    return entry(asked, told, name="ses_child", parentID="ses_root")


def family() -> Fields:
    calling = assistant("msg_2", CREATED_MS + 20, task("ses_child"))
    return snapshot(entry(TURN[0], calling), child())


def test_subagent_is_exported_inside_its_root(embedded: EmbeddedApi) -> None:
    done = embedded.put(family())
    assert done.new == 2
    paths = [body["providerRequest"]["meta"]["Helicone-Session-Path"] for body in embedded.bodies()]
    assert "/opencode/ses_root/msg-1/tool-task/ses_child/msg-1" in paths
    assert versions.session_identity(embedded.db, embedded.place.destination_id, "ses_child") == (
        "ses_root",
        Identity(""),
    )


def test_subagent_imported_alone_moves_under_its_root_when_that_appears(embedded: EmbeddedApi) -> None:
    assert embedded.put(snapshot(child())).new == 2
    assert embedded.states() == {"ses_child session": "pending", "ses_child msg_c1": "pending"}
    embedded.put(family())
    assert embedded.states() == {"ses_root session": "pending", "ses_root msg_1": "pending"}


def test_subagent_whose_root_is_known_is_not_exported_on_its_own(embedded: EmbeddedApi) -> None:
    embedded.put(family())
    done = embedded.put(snapshot(child()))
    assert (done.under, done.new, done.keys) == ("ses_root", 0, [])


def test_subagents_of_a_turn_that_waits_stay_where_they_are(embedded: EmbeddedApi) -> None:
    embedded.put(snapshot(child()))
    running = task("ses_child", status="running", output=None, title=None)
    embedded.put(snapshot(entry(TURN[0], unfinished("msg_2", CREATED_MS + 20, running)), child()))
    assert embedded.states()["ses_child msg_c1"] == "pending"


# --- what is written


@pytest.mark.parametrize("name", recorded.exported())
def test_every_recording_is_taken_whole_and_taken_once(embedded: EmbeddedApi, name: str) -> None:
    done = embedded.put(recorded.export(name), abandoned=True)
    assert (done.waiting, done.shut, done.superseded) == ([], 0, 0)
    again = embedded.put(recorded.export(name), abandoned=True)
    assert (again.new, again.known) == (0, done.new)


def test_no_secret_stands_in_any_byte_of_the_spool(embedded: EmbeddedApi, spool: Path) -> None:
    token = "hf_" + "Abcd1234" * 5
    own = "known-" + "value" * 3
    secrets = [*recorded.SECRETS.values(), *recorded.EMAILS, token, own]
    how = capture(patterns=("[a-z]+@example[.]com", recorded.SECRETS["SECRET_4"]), known=(own,))
    embedded.put(recorded.export("j_unicode_secrets"), how)
    embedded.put(one(user("msg_1", CREATED_MS + 10, text(f"{token} {own}")), TURN[1], title=f"about {token}"), how)
    embedded.put(one(*TURN, title=f"about {own}", name="ses_other"), capture("off", known=(own,)))
    files = {path.name: path.read_bytes() for path in spool.iterdir()}
    assert len(files["ledger.db-wal"]) > 10_000  # nothing was tidied away before we looked
    stored = b"".join(body.body for body in embedded.stored())
    assert b"[REDACTED]" in stored
    for secret in secrets:
        assert secret.encode() not in stored
        assert secret.encode("utf-16-le") not in stored
        for name, data in files.items():
            assert secret.encode() not in data, name


def test_version_that_another_process_makes_current_meanwhile_has_its_bodies(
    embedded: EmbeddedApi, spool: Path
) -> None:
    # Between the look and the insert the newer version goes: what looked superseded is current after all.
    embedded.put(one(*TURN))
    with closing(connect(spool / "ledger.db")) as other:

        def interfere(statement: str) -> None:
            if statement == "begin immediate":
                other.execute("delete from record")
                other.execute("delete from bundle")
                other.execute(
                    "update job set state = 'superseded', due_ms = null, finished_ms = 1, body_bytes = 0"
                    " where state = 'pending'"
                )

        embedded.db.set_trace_callback(interfere)
        older = assistant("msg_2", CREATED_MS + 20, time={"created": CREATED_MS + 20, "completed": CREATED_MS + 25})
        done = embedded.put(one(TURN[0], older))
        embedded.db.set_trace_callback(None)
    assert done.new == 1
    [key] = done.keys
    row = embedded.db.execute("select record_count, state from job where key = ?", (key,)).fetchone()
    assert tuple(row) == (2, "pending")


def test_full_disk_is_an_error_and_leaves_no_half_of_a_job(embedded: EmbeddedApi) -> None:
    embedded.put(one(*TURN))
    pages = embedded.db.execute("pragma page_count").fetchone()[0]
    embedded.db.execute(f"pragma max_page_count = {pages}")
    random_text = "".join(chr(0x4E00 + (n * 7919) % 20_000) for n in range(60_000))
    big = replace_text(LATER[1], random_text)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        embedded.put(one(*TURN, LATER[0], big))
    embedded.db.execute("pragma max_page_count = 1000000")
    assert "ses_root msg_3" not in embedded.states()
    assert embedded.put(one(*TURN, LATER[0], big)).new == 1


def replace_text(message: Fields, value: str) -> Fields:
    return {**message, "parts": [text(value, "prt_4")]}

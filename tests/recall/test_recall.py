"""What was delivered is found by audit, and overwritten by recall."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.capture.enqueue import Place, decisions_on, enqueue
from app.capture.export import Export
from app.database.open import open_ledger
from app.exporters.helicone.client import Client
from app.exporters.helicone.records import blank, kind_of
from app.exporters.helicone.routes import read_back_url
from app.ledger import pruning
from app.ledger.claims import claim, drop
from app.ledger.counts import pending_keys
from app.ledger.decision import RECALL, Decision, Reopen
from app.ledger.destinations import destination
from app.ledger.history import exported
from app.ledger.job import Claim
from app.operations.remote import Remote
from app.privacy.policy import Mode, Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.recall.audit import EXPORT_MODE, Audited, audit
from app.recall.compare import look
from app.recall.delivered_policy import DeliveredPolicy, Encodings
from app.recall.expected import ExpectedContent
from app.recall.recall import Plan, Recall
from app.recall.rewrite import Refusal, sent
from app.settings.model import Settings
from app.sources.opencode.store import Store
from app.transcript.identity import Identity
from app.transcript.parse import parse
from tests.capture.test_enqueue import EmbeddedApi, capture, child, family
from tests.sources.opencode.test_store import built
from tests.support import recorded
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station, hook, worker
from tests.support.servers import Receiver, api_key, receiving
from tests.support.snapshots import Fields, assistant, entry, snapshot, text, tool, user
from tests.support.waiting import wait_until

LOG_ROUTE = "/v1/trace/custom/log"
SECRET = recorded.SECRETS["SECRET_1"]
NO_REDACTION = Redaction.compile([], secrets=False)


@pytest.fixture
def embedded(db: sqlite3.Connection) -> EmbeddedApi:
    target = destination(db, "https://example.invalid", "fingerprint", 0)
    return EmbeddedApi(db, Place(target.id, "folder"))


class Rules:
    """How folders are captured, for a test."""

    def __init__(self, today: Capture) -> None:
        self.today = today

    def find(self, _: str | None) -> tuple[Settings, Capture | None]:
        return Settings(), self.today


def told(secret: str = SECRET, reply: str = "done") -> Fields:
    return snapshot(
        entry(
            user("msg_1", 1_000_010, text(f"my key is {secret}", "prt_asked")),
            assistant("msg_2", 1_000_020, text(reply), tool(output=f"key={secret}")),
            directory="/home/dev/project",
        )
    )


def deliver(embedded: EmbeddedApi, receiver: Receiver) -> None:
    """Post all that is pending, as a worker does, without one."""
    bench = bench_of(embedded)
    with closing(Client(api_key())) as client:
        for claimed in claims(bench):
            carry(bench, receiver, client, claimed)


def carry(bench: LedgerBench, receiver: Receiver, client: Client, claimed: Claim) -> None:
    for body in bench.left(claimed):
        assert client.post(receiver.url + LOG_ROUTE, body.body, str(body.request_id), 0).kind == "accepted"
        assert bench.acknowledge(claimed, body)
    assert bench.complete(claimed)


def bench_of(embedded: EmbeddedApi) -> LedgerBench:
    bench = LedgerBench(embedded.db)
    bench.destination, bench.now_ms = embedded.place.destination_id, 10_000_000
    return bench


def claims(bench: LedgerBench) -> Iterator[Claim]:
    for key in pending_keys(bench.db):
        claimed = claim(bench.db, bench.destination, key, worker="w", now_ms=bench.now_ms, lease_ms=60_000)
        if claimed is not None:
            yield claimed


def audited(embedded: EmbeddedApi, store: Store, today: Capture | None = None) -> list[Audited]:
    rules = Rules(today or capture())
    found = audit(embedded.db, embedded.place.destination_id, store, rules, "ses_root")  # type: ignore[arg-type]
    return [] if found is None else [found]


def shown(receiver: Receiver) -> str:
    rows = [row.log for row in receiver.rows()]
    return json.dumps([[log.request_body, log.response_body, dict(log.properties)] for log in rows])


def a_recall(embedded: EmbeddedApi, path: Path, today: Capture | None = None, **manner: object) -> Recall:
    rules = Rules(today or capture())
    return Recall(embedded.db, embedded.place.destination_id, Store(path), rules, **manner)  # type: ignore[arg-type]


def recall(embedded: EmbeddedApi, claimed: Recall, session: str, turns: list[str] | None = None) -> Plan:
    plan = claimed.plan(session, turns)
    assert claimed.queue(plan, 9_000_000, embedded.woken.append).in_flight == ()
    return plan


def refused(plan: Plan) -> list[Refusal]:
    return [one.refusal for one in plan.problems]


@pytest.mark.parametrize("name", recorded.exported())
def test_a_blank_record_replaces_each_record_of_a_recording(tmp_path: Path, embedded: EmbeddedApi, name: str) -> None:
    wanted = recorded.export(name)
    embedded.put(wanted, abandoned=True)
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        before = receiver.rows()
        # OpenCode's store is not there any more.
        plan = recall(embedded, a_recall(embedded, tmp_path / "nowhere.db", is_blank=True), wanted["root"])
        assert plan.problems == ()
        assert plan.records == len(before)
        deliver(embedded, receiver)
        after = receiver.rows()
    assert [row.sends for row in after] == [2] * len(before)
    kept = ("request_id", "provider", "model", "user_id", "created_ms")
    for old, new in zip(before, after, strict=True):
        assert [getattr(old.log, one) for one in kept] == [getattr(new.log, one) for one in kept]
        assert {**old.log.properties, **new.log.properties} == old.log.properties
        assert set(new.log.properties) == {"Helicone-Session-Id", "Helicone-Session-Name", "Helicone-Session-Path"}
    messages = [message for one in wanted["sessions"] for message in one["messages"]]
    texts = [part["text"] for message in messages for part in message["parts"] if len(part.get("text") or "") > 8]
    bodies = "".join(row.log.request_body + row.log.response_body for row in after)
    assert not [one for one in texts if json.dumps(one)[1:-1] in bodies]


@pytest.mark.parametrize("name", recorded.exported())
def test_a_blank_record_is_of_the_kind_of_its_record(name: str) -> None:
    for export in Encodings(parse(recorded.export(name)), Identity(""), "helicone").under(capture()).values():
        for record in export.encode():
            assert kind_of(record.model) == record.kind
            assert replace(blank(record, "ses_1"), body=b"") == replace(record, body=b"")


def test_a_matching_turn_is_redacted_by_the_pattern_and_sealed(tmp_path: Path, embedded: EmbeddedApi) -> None:
    wanted = told("blue whale")
    store = built(tmp_path / "opencode.db", wanted)
    embedded.put(wanted)
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        assert "blue whale" in shown(receiver)
        claimed = a_recall(embedded, store, pattern="blue whale")
        assert claimed.matching("ses_root") == frozenset({"msg_1"})
        recall(embedded, claimed, "ses_root", ["msg_1"])
        deliver(embedded, receiver)
        assert "blue whale" not in shown(receiver)
        assert "done" in shown(receiver)
        # The same may be asked for again.
        assert recall(embedded, a_recall(embedded, store, pattern="blue whale"), "ses_root", ["msg_1"]).problems == ()
        deliver(embedded, receiver)
        # Nor does anything bring it back.
        assert embedded.put(told("blue whale", "later")).shut == 1
        assert embedded.put(wanted, reopen=Reopen(frozenset({"deleted", "off"}), body_not_stored=True)).new == 0
        # The next recall does not know that pattern.
        assert Refusal.SEALED in refused(recall(embedded, a_recall(embedded, store), "ses_root"))
        deliver(embedded, receiver)
        assert "blue whale" not in shown(receiver)
        assert {row.sends for row in receiver.rows()} == {1, 3}


def test_a_blanked_subagent_does_not_come_back_with_its_parent(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(snapshot(child()))
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        recall(embedded, a_recall(embedded, tmp_path / "nowhere.db", is_blank=True), "ses_child")
        deliver(embedded, receiver)
        assert "sub tell" not in shown(receiver)
        done = embedded.put(family())
        assert (done.new, done.shut) == (1, 1)
        told = decisions_on(embedded.db, parse(family()), capture(), embedded.place)
        assert [decision for _, decision in told] == [Decision.KNOWN, Decision.REFUSED]
        deliver(embedded, receiver)
        assert "sub tell" not in shown(receiver)


@pytest.mark.parametrize(("endpoint", "is_shut"), [("https://example.invalid", True), ("https://other.invalid", False)])
def test_a_sealed_turn_does_not_come_back_under_another_key_of_its_endpoint(
    tmp_path: Path, embedded: EmbeddedApi, endpoint: str, *, is_shut: bool
) -> None:
    embedded.put(told())
    recall(embedded, a_recall(embedded, tmp_path / "nowhere.db", is_blank=True), "ses_root")
    other = EmbeddedApi(embedded.db, Place(destination(embedded.db, endpoint, "another", 0).id, "folder"))
    done = other.put(told())
    assert (done.new, done.shut) == ((0, 2) if is_shut else (2, 0))
    assert other.put(told(), reopen=Reopen(sealed=True)).new == (2 if is_shut else 0)


def test_without_its_text_a_session_is_recalled_with_blank_only(tmp_path: Path, embedded: EmbeddedApi) -> None:
    wanted = told()
    embedded.put(wanted)
    plan = a_recall(embedded, built(tmp_path / "opencode.db", recorded.export("a_simple"))).plan("ses_root", None)
    assert plan.rewrites == ()
    assert refused(plan) == [Refusal.NO_TEXT]


def test_a_turn_that_was_never_sent_gets_no_records(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    plan = recall(embedded, a_recall(embedded, tmp_path / "nowhere.db", is_blank=True), "ses_root")
    assert plan.records == 0
    assert len(plan.rewrites) == 2
    assert embedded.stored() == []


def test_a_record_that_is_no_more_is_blanked(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        count = len(receiver.rows())
        shorter = told()
        del shorter["sessions"][0]["messages"][1]
        recall(embedded, a_recall(embedded, built(tmp_path / "opencode.db", shorter)), "ses_root")
        deliver(embedded, receiver)
        rows = receiver.rows()
    (row,) = [one for one in rows if one.log.model == "tool:bash"]
    assert len(rows) == count
    assert json.loads(row.log.response_body) == {"_type": "tool", "toolName": "bash", "status": "success"}


def test_of_several_versions_that_were_sent_the_newest_counts(embedded: EmbeddedApi) -> None:
    embedded.put(told())
    one = replace(exported(embedded.db, embedded.place.destination_id, "ses_root")[-1], was_attempted=True)
    older = replace(
        one,
        identities=tuple(
            replace(log, identity_fields=replace(log.identity_fields, model="older")) for log in one.identities
        ),
    )
    newest = [log.identity_fields.model for log in sent([older, one])][: len(one.identities)]
    assert newest == [log.identity_fields.model for log in one.identities]
    bare = Policy("metadata_only", (), redact_secrets=True, prefix="").facts("")
    precedent = DeliveredPolicy(Encodings(parse(told()), Identity(""), "helicone"), capture())
    assert "done" not in texts(precedent.last("msg_1", [one, replace(one, policy=bare)]))
    assert "done" in texts(precedent.last("msg_1", [replace(one, policy=bare), one]))


def texts(export: Export | None) -> str:
    assert export is not None
    return "".join(record.body.decode() for record in export.encode())


def test_a_recall_outlives_its_session_and_its_age(bench: LedgerBench) -> None:
    bench.put(version())
    bench.deliver(version())
    again = replace(version(content="blank"), is_recall=True)
    assert bench.put(again, reopen=RECALL) is Decision.NEW
    assert pruning.drop_session(bench.db, bench.destination, "ses_1", 2_000) == 0
    assert pruning.drop_aged(bench.db, 10_000_000, 0) == 0
    assert bench.state(again) == "pending"


@pytest.mark.parametrize("state", ["pending", "delivered", "dead"])
def test_a_recall_of_the_same_key_is_made_anew(bench: LedgerBench, state: str) -> None:
    bench.put(version())
    if state == "delivered":
        bench.deliver(version())
    elif state == "dead":
        bench.dead_letter(bench.claimed())
    again = replace(version(), is_recall=True)
    assert bench.put(again, text="redacted", reopen=RECALL) is Decision.REOPENED
    assert bench.state() == "pending"
    assert [body.body for body in bench.left(bench.claimed())] == [b"ses_1 t1 0 redacted"]


def test_the_same_recall_once_more_posts_all_of_it_again(bench: LedgerBench) -> None:
    again = replace(version(), is_recall=True)
    bench.put(again)
    bench.deliver(again)
    bench.put(again, reopen=RECALL)
    assert len(bench.left(bench.claimed())) == 1


def test_what_is_in_flight_is_not_recalled_under_the_same_key(bench: LedgerBench) -> None:
    bench.put(version())
    bench.claimed()
    assert bench.put(replace(version(), is_recall=True), reopen=RECALL) is Decision.KNOWN


CAPTURES = st.lists(
    st.tuples(st.sampled_from(["blue whale", "red fox"]), st.sampled_from(["full", "metadata_only", "off"])), max_size=3
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(captures=CAPTURES)
def test_after_a_recall_a_sealed_turn_stays_as_it_is_whatever_is_captured(
    tmp_path_factory: pytest.TempPathFactory, new_door: Callable[[Path], EmbeddedApi], captures: list[tuple[str, Mode]]
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    embedded = new_door(folder)
    embedded.put(told("blue whale"))
    ids = {one.request_id for one in embedded.stored()}
    bench = bench_of(embedded)
    for claimed in claims(bench):
        for body in bench.left(claimed):
            bench.acknowledge(claimed, body)
        bench.complete(claimed)
    recall(embedded, a_recall(embedded, folder / "nowhere.db", is_blank=True), "ses_root")
    kept = embedded.stored()
    assert {one.request_id for one in kept} == ids
    for reply, (secret, mode) in enumerate(captures):
        enqueue(
            embedded.db,
            parse(told(secret, str(reply))),
            capture(mode),
            embedded.place,
            now_ms=1,
            wake=embedded.woken.append,
        )
        assert embedded.stored() == kept
    embedded.db.close()


@pytest.fixture
def new_door(migrated: Path) -> Callable[[Path], EmbeddedApi]:
    def make(folder: Path) -> EmbeddedApi:
        shutil.copytree(migrated, folder / "spool")
        db = open_ledger(folder / "spool")
        return EmbeddedApi(db, Place(destination(db, "https://example.invalid", "f", 0).id, "folder"))

    return make


@pytest.mark.slow
def test_a_secret_that_was_delivered_is_found_and_overwritten(tmp_path: Path) -> None:
    with receiving(tmp_path / "receiver.db") as receiver:
        loose = Station(tmp_path, receiver.url, variables={"OPENCODE_HELICONE_REDACT_SECRETS": "false"})
        strict = replace(loose, variables={"OPENCODE_HELICONE_REDACT_SECRETS": "true"})
        with worker(loose), hook(loose) as live:
            live.show(told())
            wait_until(lambda: loose.delivered(2))
        assert SECRET in shown(receiver)
        before = len(receiver.rows())

        found = strict.run("audit", "--json")
        assert found.returncode == 1, found.stderr
        assert SECRET not in found.stdout
        (session,) = json.loads(found.stdout)["sessions"]
        assert [record["kind"] for record in session["records"]] == ["user", "assistant", "tool"]

        asked = strict.run("recall", "--audit")
        assert (asked.returncode, "say --yes" in asked.stderr) == (2, True)
        assert SECRET in shown(receiver)

        with worker(strict):
            done = strict.run("recall", "--audit", "--yes", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["outcomes"] == {"overwritten": 3}
        assert SECRET not in shown(receiver)
        assert len(receiver.rows()) == before
        assert strict.run("audit").returncode == 0

        agreed = strict.run("verify", "--remote", "--json")
        assert agreed.returncode == 0, agreed.stdout + agreed.stderr
        verdict = json.loads(agreed.stdout)
        assert (verdict["unexplained"], verdict["remote_failure"]) == (0, "")
        remote = verdict["sessions"][0]["remote"]
        assert (remote["found"], remote["missing"], remote["not_yet"]) == (before, 0, 0)

        # OpenCode forgets the session; its records can still be emptied.
        (tmp_path / "data" / "opencode" / "opencode.db").unlink()
        gone = strict.run("recall", "ses_root", "--blank", "--yes", "--json")
        assert gone.returncode == 0, gone.stdout + gone.stderr
        assert json.loads(gone.stdout)["outcomes"] == {"overwritten": before}
        assert "done" not in shown(receiver)
        assert len(receiver.rows()) == before


# --- jobs from before footprints


def test_without_digests_audit_lists_all_that_the_rules_find(tmp_path: Path, embedded: EmbeddedApi) -> None:
    store = Store(built(tmp_path / "opencode.db", told()))
    loose = replace(capture(), policy=replace(capture().policy, redact_secrets=False), redaction=NO_REDACTION)
    embedded.put(told(), loose)
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
    (printed,) = audited(embedded, store)
    embedded.db.execute("delete from footprint")
    (unprinted,) = audited(embedded, store)
    assert (printed.unprinted, unprinted.unprinted) == (0, 2)
    assert unprinted.records == printed.records != ()


def test_without_digests_what_the_rules_of_then_took_out_is_not_listed(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
    embedded.db.execute("delete from footprint")
    (result,) = audited(embedded, Store(built(tmp_path / "opencode.db", told())))
    assert (result.unprinted, result.records) == (2, ())


@pytest.mark.parametrize("is_blank", [True, False], ids=["blank", "redacted"])
def test_without_footprints_what_opencode_still_has_is_overwritten(
    tmp_path: Path, embedded: EmbeddedApi, *, is_blank: bool
) -> None:
    store = built(tmp_path / "opencode.db", told("blue whale"))
    embedded.put(told("blue whale"))
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        count = len(receiver.rows())
        embedded.db.execute("delete from footprint")
        how = {"is_blank": True} if is_blank else {"pattern": "blue whale"}
        assert recall(embedded, a_recall(embedded, store, **how), "ses_root").problems == ()
        deliver(embedded, receiver)
        assert len(receiver.rows()) == count
        assert "blue whale" not in shown(receiver)


def test_without_footprints_what_opencode_has_lost_is_a_problem(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
    embedded.db.execute("delete from footprint")
    plan = a_recall(embedded, tmp_path / "nowhere.db", is_blank=True).plan("ses_root", None)
    assert plan.rewrites == ()
    assert refused(plan) == [Refusal.UNNAMED] * 2


# --- stricter export mode


@pytest.mark.parametrize(("then", "found"), [("full", {EXPORT_MODE}), ("metadata_only", set())])
def test_audit_lists_texts_that_the_mode_of_today_would_withhold(
    tmp_path: Path, embedded: EmbeddedApi, then: Mode, found: set[str]
) -> None:
    store = Store(built(tmp_path / "opencode.db", told()))
    embedded.put(told(), capture(then))
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        count = len(receiver.rows())
    (result,) = audited(embedded, store, capture("metadata_only"))
    assert {name for record in result.records for name in record.hits} == found
    assert len(result.records) == (count if found else 0)


# --- since


def test_turns_that_are_older_are_neither_searched_nor_overwritten(tmp_path: Path, embedded: EmbeddedApi) -> None:
    store = built(tmp_path / "opencode.db", told("blue whale"))
    embedded.put(told("blue whale"))
    changed_ms = max(one.last_event_ms for one in exported(embedded.db, embedded.place.destination_id, "ses_root"))
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
    late = a_recall(embedded, store, pattern="blue whale", since_ms=changed_ms + 1)
    assert late.matching("ses_root") == frozenset()
    assert late.plan("ses_root", None) == Plan("ses_root", (), ())
    assert a_recall(embedded, store, pattern="blue whale", since_ms=1).matching("ses_root") == frozenset({"msg_1"})


# --- read back


def test_a_row_that_is_not_overwritten_yet_is_still_old(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        claimed = a_recall(embedded, tmp_path / "nowhere.db", is_blank=True)
        queued = claimed.queue(claimed.plan("ses_root", None), 9_000_000, embedded.woken.append)
        assert outcomes(receiver, queued.expected) == {"still old": len(receiver.rows())}
        deliver(embedded, receiver)
        assert outcomes(receiver, queued.expected) == {"overwritten": len(receiver.rows())}


def outcomes(receiver: Receiver, expected: Sequence[ExpectedContent]) -> dict[str, int]:
    url = read_back_url(receiver.url, api_key(), None)
    assert url is not None
    with closing(Client(api_key())) as client:
        return Counter(one.outcome for one in look(Remote(client, url, 1_000).shown, expected, end_s=0.0))


# --- in the middle of it


def test_a_recall_that_was_killed_between_two_turns_is_completed_by_the_next(
    tmp_path: Path, embedded: EmbeddedApi
) -> None:
    embedded.put(told())
    claimed = a_recall(embedded, tmp_path / "nowhere.db", is_blank=True)
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        count = len(receiver.rows())
        embedded.db.executescript(
            "create temp trigger kill before insert on main.job when (select count(*) from job where is_recall) = 1"
            " begin select raise(abort, 'killed'); end"
        )
        with pytest.raises(sqlite3.IntegrityError, match="killed"):
            claimed.queue(claimed.plan("ses_root", None), 9_000_000, embedded.woken.append)
        assert sorted(embedded.states().values()) == ["delivered", "pending"]
        embedded.db.execute("drop trigger kill")
        assert recall(embedded, claimed, "ses_root").records == count
        deliver(embedded, receiver)
        assert SECRET not in shown(receiver)
        assert [row.sends for row in receiver.rows()] == [2] * count


@pytest.mark.parametrize("is_blank", [True, False], ids=["blank", "redacted"])
def test_what_is_in_flight_lands_before_its_recall(tmp_path: Path, embedded: EmbeddedApi, *, is_blank: bool) -> None:
    store = built(tmp_path / "opencode.db", told("blue whale"))
    embedded.put(told("blue whale"))
    bench = bench_of(embedded)
    how = {"is_blank": True} if is_blank else {"pattern": "blue whale"}
    with receiving(tmp_path / "store.db") as receiver, closing(Client(api_key())) as client:
        carry(bench, receiver, client, next(claims(bench)))  # the session's own record
        old = next(claims(bench))
        bodies = bench.left(old)
        recall(embedded, a_recall(embedded, store, **how), "ses_root")
        # Nobody else may post anything of the session until the worker lets go.
        assert list(claims(bench)) == []
        for body in bodies:
            assert client.post(receiver.url + LOG_ROUTE, body.body, str(body.request_id), 0).kind == "accepted"
            assert not bench.acknowledge(old, body)
        assert "blue whale" in shown(receiver)
        assert not bench.complete(old)
        deliver(embedded, receiver)
        assert len(receiver.rows()) == 4
        assert "blue whale" not in shown(receiver)


def test_what_is_claimed_while_its_recall_is_queued_is_recalled_again(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    bench = bench_of(embedded)
    claimed = a_recall(embedded, tmp_path / "nowhere.db", is_blank=True)
    early = claimed.plan("ses_root", None)
    assert early.records == 0  # nothing was sent
    old = next(claims(bench))
    queued = claimed.queue(early, 9_000_000, embedded.woken.append)
    assert (queued.expected, queued.in_flight) == ((), (old.turn,))
    again = claimed.queue(claimed.plan("ses_root", [old.turn]), 9_000_000, embedded.woken.append)
    assert (len(again.expected), again.in_flight) == (1, ())


def test_a_recall_that_is_itself_in_flight_is_not_queued_again_but_named(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    claimed = a_recall(embedded, tmp_path / "nowhere.db", is_blank=True)
    recall(embedded, claimed, "ses_root")
    in_flight = next(claims(bench_of(embedded)))
    queued = claimed.queue(claimed.plan("ses_root", None), 9_000_000, embedded.woken.append)
    assert queued.in_flight == (in_flight.turn,)


# --- what replaces a recall


@pytest.mark.parametrize("state", ["pending", "dead", "dropped (policy)"])
@pytest.mark.parametrize("content", ["a", "newer"], ids=["the same", "a newer version"])
def test_what_replaces_a_recall_that_was_not_delivered_is_one_itself(
    bench: LedgerBench, state: str, content: str
) -> None:
    bench.put(version())
    bench.deliver(version())
    bench.put(replace(version(), is_recall=True), text="redacted", reopen=RECALL)
    if state == "dead":
        bench.dead_letter(bench.claimed())
    elif state != "pending":
        assert drop(bench.db, bench.claimed(), "policy", bench.now_ms)
    assert bench.state() == state
    newer = version(content=content, last_event_ms=200)
    bench.put(newer, text="redacted more")
    assert bench.row(newer)["is_recall"] == 1
    assert pruning.drop_session(bench.db, bench.destination, "ses_1", 2_000) == 0


def test_what_replaces_a_delivered_recall_is_a_version_like_others(bench: LedgerBench) -> None:
    again = replace(version(), is_recall=True)
    bench.put(again)
    bench.deliver(again)
    newer = version(content="newer", last_event_ms=200)
    bench.put(newer)
    assert bench.row(newer)["is_recall"] == 0


@pytest.mark.parametrize("is_blank", [True, False], ids=["blank", "redacted"])
def test_a_blank_record_keeps_the_name_of_its_session_and_a_redacted_one_does_not(
    tmp_path: Path, embedded: EmbeddedApi, *, is_blank: bool
) -> None:
    named = snapshot(
        entry(user("msg_1", 1_000_010, text("ask")), assistant("msg_2", 1_000_020), directory="/home/dev/blue whale")
    )
    store = built(tmp_path / "opencode.db", named)
    embedded.put(named)
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        how = {"is_blank": True} if is_blank else {"pattern": "blue whale"}
        recall(embedded, a_recall(embedded, store, **how), "ses_root")
        deliver(embedded, receiver)
        names = [row.log.properties["Helicone-Session-Name"] for row in receiver.rows()]
    assert {"blue whale" in name for name in names} == {is_blank}


# --- a recall takes out, and puts nothing back


def loose() -> Capture:
    return replace(capture(), policy=replace(capture().policy, redact_secrets=False), redaction=NO_REDACTION)


def test_what_was_delivered_as_metadata_is_neither_searched_nor_made_full(
    tmp_path: Path, embedded: EmbeddedApi
) -> None:
    store = built(tmp_path / "opencode.db", told("blue whale"))
    embedded.put(told("blue whale"), capture("metadata_only"))
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        assert a_recall(embedded, store, pattern="blue whale").matching("ses_root") == frozenset()
        assert recall(embedded, a_recall(embedded, store), "ses_root").problems == ()
        deliver(embedded, receiver)
        assert "blue whale" not in shown(receiver)


def test_a_turn_redacted_by_secrets_that_are_not_known_here_is_refused(tmp_path: Path, embedded: EmbeddedApi) -> None:
    store = built(tmp_path / "opencode.db", told("blue whale"))
    knowing = capture(known=("blue whale",))
    embedded.put(told("blue whale"), knowing)
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        plan = a_recall(embedded, store).plan("ses_root", ["msg_1"])
        assert plan.rewrites == ()
        assert refused(plan) == [Refusal.UNEQUAL]
        assert a_recall(embedded, store, today=knowing).plan("ses_root", None).problems == ()
        assert a_recall(embedded, store, is_blank=True).plan("ses_root", None).problems == ()


def test_a_turn_that_was_delivered_without_redaction_is_recalled_with_it(tmp_path: Path, embedded: EmbeddedApi) -> None:
    store = built(tmp_path / "opencode.db", told())
    embedded.put(told(), loose())
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        assert SECRET in shown(receiver)
        assert recall(embedded, a_recall(embedded, store), "ses_root").problems == ()
        deliver(embedded, receiver)
        assert SECRET not in shown(receiver)


@pytest.mark.parametrize(
    ("then", "now", "setting"),
    [(capture(), loose(), "redactSecrets"), (capture(patterns=("whale",)), capture(), "redactPatterns")],
    ids=["secrets", "patterns"],
)
def test_settings_that_are_looser_than_what_was_delivered_are_named_and_recall_nothing(
    tmp_path: Path, embedded: EmbeddedApi, then: Capture, now: Capture, setting: str
) -> None:
    store = built(tmp_path / "opencode.db", told())
    embedded.put(told(), then)
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
    plan = a_recall(embedded, store, today=now).plan("ses_root", None)
    assert plan.rewrites == ()
    assert {(one.refusal, one.detail) for one in plan.problems} == {(Refusal.LOOSER, setting)}


def test_a_turn_that_opencode_has_changed_since_is_refused(tmp_path: Path, embedded: EmbeddedApi) -> None:
    embedded.put(told())
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
    store = built(tmp_path / "opencode.db", told(reply="said otherwise"))
    assert refused(a_recall(embedded, store).plan("ses_root", ["msg_1"])) == [Refusal.UNEQUAL]


def test_without_footprints_a_blank_record_is_named_as_its_record_was(tmp_path: Path, embedded: EmbeddedApi) -> None:
    store = built(tmp_path / "opencode.db", told())
    embedded.put(told(), capture("metadata_only"))
    with receiving(tmp_path / "store.db") as receiver:
        deliver(embedded, receiver)
        before = [(row.log.model, dict(row.log.properties)) for row in receiver.rows()]
        embedded.db.execute("delete from footprint")
        recall(embedded, a_recall(embedded, store, is_blank=True), "ses_root")
        deliver(embedded, receiver)
        after = [(row.log.model, dict(row.log.properties)) for row in receiver.rows()]
    assert len(after) == len(before)
    for (old_model, old), (new_model, new) in zip(before, after, strict=True):
        assert (new_model, {**old, **new}) == (old_model, old)


POLICIES = {
    "full": capture(),
    "not redacted": loose(),
    "pattern": capture(patterns=("[a-z]{5}",)),
    "known": capture(known=("README", "hello", "file")),
    "metadata": capture("metadata_only"),
}


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(recorded.exported()),
    then=st.sampled_from(sorted(POLICIES)),
    now=st.sampled_from(sorted(POLICIES)),
)
def test_no_recall_holds_a_string_that_was_not_delivered(
    tmp_path_factory: pytest.TempPathFactory, new_door: Callable[[Path], EmbeddedApi], name: str, then: str, now: str
) -> None:
    folder = tmp_path_factory.mktemp("nothing_back")
    embedded = new_door(folder)
    wanted = recorded.export(name)
    embedded.put(wanted, POLICIES[then], abandoned=True)
    delivered = "\n".join(value for body in embedded.stored() for value in strings(json.loads(body.body)))
    bench = bench_of(embedded)
    for claimed in claims(bench):
        for body in bench.left(claimed):
            bench.acknowledge(claimed, body)
        bench.complete(claimed)
    store = built(folder / "opencode.db", wanted)
    plan = a_recall(embedded, store, today=POLICIES[now]).plan(wanted["root"], None)
    assert plan.rewrites or then != now
    queued = [value for one in plan.rewrites for body in one.bodies for value in strings(json.loads(body.body))]
    assert [piece for value in queued for piece in value.split("[REDACTED]") if piece not in delivered] == []
    embedded.db.close()


def strings(told: object) -> Iterator[str]:
    if isinstance(told, str):
        yield told
    elif isinstance(told, dict):
        for name, inner in told.items():
            yield from (name, *strings(inner))
    elif isinstance(told, list):
        for inner in told:
            yield from strings(inner)

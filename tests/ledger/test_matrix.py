"""Every function of the ledger that writes, on a job in every state: it changes the states that it names, no other."""

from __future__ import annotations

import inspect
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeAlias

import pytest

from app import ledger
from app.ledger import (
    adoption,
    claims,
    confirmations,
    dead_letters,
    destinations,
    eviction,
    flow,
    folders,
    history,
    maintenance,
    notices,
    policy_enforcement,
    pruning,
    readback,
    record_identity,
    versions,
)
from app.ledger.claims import ISOLATED_KILLS
from app.ledger.confirmations import Unconfirmed
from app.ledger.dead_letters import Choice
from app.ledger.decision import RECALL, Decision, Reopen
from app.ledger.destinations import Destination
from app.ledger.eviction import Recaptured
from app.ledger.job import Claim, FailedAttempt
from app.ledger.notices import TurnRead
from tests.support.ledger_bench import WORKER, LedgerBench, bodies, version, without_waiting

DAY_MS = 24 * 3_600_000
LATER_MS = 9_000
"""When what is put off becomes due; the functions are called at 2_000."""


def seen(bench: LedgerBench) -> Unconfirmed:
    [due] = confirmations.due_for_confirmation(bench.db, bench.destination, bench.now_ms, 1)
    return due


def pending(bench: LedgerBench, claimed: Claim) -> None:
    claims.release(bench.db, claimed, due_ms=1_000)


def backoff(bench: LedgerBench, claimed: Claim) -> None:
    bench.retry_later(claimed, due_ms=LATER_MS)


def put_off(bench: LedgerBench, claimed: Claim) -> None:
    """By a clock that was wrong."""
    claims.release(bench.db, claimed, due_ms=DAY_MS)


def on_hold(bench: LedgerBench, claimed: Claim) -> None:
    policy_enforcement.hold(bench.db, claimed, due_ms=LATER_MS, reason="off")


def leased(bench: LedgerBench, claimed: Claim) -> None:
    """By the claim that the function is called with."""


def retaken(bench: LedgerBench, claimed: Claim) -> None:
    """By a later claim."""
    pending(bench, claimed)
    bench.claimed(worker="worker-b")


def delivered(bench: LedgerBench, claimed: Claim) -> None:
    bench.acknowledge(claimed, bench.left(claimed)[0])
    bench.complete(claimed)


def to_be_confirmed(bench: LedgerBench, claimed: Claim) -> None:
    bench.acknowledge(claimed, bench.left(claimed)[0])
    claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=bench.now_ms)


def looked_back(bench: LedgerBench, claimed: Claim) -> None:
    """To be confirmed, its bodies gone."""
    delivered(bench, claimed)
    confirmations.look_back(bench.db, bench.destination, bench.now_ms)


def confirmed(bench: LedgerBench, claimed: Claim) -> None:
    to_be_confirmed(bench, claimed)
    confirmations.confirmed(bench.db, seen(bench), bench.now_ms, has_body=True)


def body_not_stored(bench: LedgerBench, claimed: Claim) -> None:
    to_be_confirmed(bench, claimed)
    confirmations.confirmed(bench.db, seen(bench), bench.now_ms, has_body=False)


def sent_again(bench: LedgerBench, claimed: Claim) -> None:
    to_be_confirmed(bench, claimed)
    confirmations.send_again(bench.db, seen(bench), bench.now_ms)


def dead(bench: LedgerBench, claimed: Claim) -> None:
    bench.dead_letter(claimed)


def dead_unstored(bench: LedgerBench, claimed: Claim) -> None:
    to_be_confirmed(bench, claimed)
    confirmations.dead_letter_unstored(bench.db, seen(bench), bench.now_ms, "accepted but not stored")


def evicted(bench: LedgerBench, claimed: Claim) -> None:
    pending(bench, claimed)
    eviction.give_up_bodies(bench.db, [claimed.job_id], "store")


def evicted_leased(bench: LedgerBench, _: Claim) -> None:
    """By the claim that the function is called with, its bodies gone."""
    bench.db.execute("update job set body_bytes = 0")
    bench.db.execute("delete from bundle")


def dead_evicted(bench: LedgerBench, claimed: Claim) -> None:
    dead(bench, claimed)
    eviction.give_up_bodies(bench.db, [claimed.job_id], "store")


def delivered_evicted(bench: LedgerBench, claimed: Claim) -> None:
    """To be confirmed, and sent without that its bodies were kept."""
    evicted_leased(bench, claimed)
    bench.acknowledge(claimed, bodies("ses_1 t1", text=version().key)[0])
    claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=bench.now_ms)


def superseded(bench: LedgerBench, claimed: Claim) -> None:
    superseded_leased(bench, claimed)
    claims.release(bench.db, claimed, due_ms=1_000)


def superseded_leased(bench: LedgerBench, _: Claim) -> None:
    bench.put(version(content="newer", last_event_ms=200))


def dropped_size(bench: LedgerBench, claimed: Claim) -> None:
    pending(bench, claimed)
    pruning.drop_oversize(bench.db, 1_000, 0)


def dropped_deleted_leased(bench: LedgerBench, _: Claim) -> None:
    pruning.drop_session(bench.db, bench.destination, "ses_1", 1_000)


def dropped_policy(bench: LedgerBench, claimed: Claim) -> None:
    claims.drop(bench.db, claimed, "policy", 1_000)


def dropped_purged(bench: LedgerBench, claimed: Claim) -> None:
    dead(bench, claimed)
    dead_letters.purge_dead(bench.db, Choice(), 1_000)


STATES: dict[str, Callable[[LedgerBench, Claim], None]] = {
    "pending": pending,
    "in backoff": backoff,
    "put off": put_off,
    "held": on_hold,
    "sent again": sent_again,
    "leased": leased,
    "retaken": retaken,
    "delivered": delivered,
    "to be confirmed": to_be_confirmed,
    "looked back": looked_back,
    "confirmed": confirmed,
    "body not stored": body_not_stored,
    "delivered evicted": delivered_evicted,
    "evicted": evicted,
    "evicted leased": evicted_leased,
    "dead evicted": dead_evicted,
    "dead": dead,
    "dead unstored": dead_unstored,
    "superseded": superseded,
    "superseded leased": superseded_leased,
    "dropped size": dropped_size,
    "dropped deleted leased": dropped_deleted_leased,
    "dropped policy": dropped_policy,
    "dropped purged": dropped_purged,
}
"""What is done to a job that was just claimed, so that it is in that state."""

DUE = ("pending", "sent again", "evicted")
FREE = (*DUE, "in backoff", "put off", "held")
OURS = ("leased", "evicted leased")
IN_FLIGHT = (*OURS, "retaken")
DEAD = ("dead", "dead unstored", "dead evicted")
RESENDABLE = ("to be confirmed", "delivered evicted")
UNCONFIRMED = (*RESENDABLE, "looked back")
EVICTED = ("evicted", "evicted leased", "dead evicted", "delivered evicted")
DELIVERED = (*UNCONFIRMED, "delivered", "confirmed", "body not stored")
DROPPED = ("dropped size", "dropped deleted leased", "dropped policy", "dropped purged")
SUPERSEDED = ("superseded", "superseded leased")
SHUT = "dropped deleted leased"
CURRENT = (*FREE, *IN_FLIGHT, *DELIVERED, *DEAD, *DROPPED)


def to(state: str, *before: str) -> dict[str, str]:
    return dict.fromkeys(before, state)


LEASE_GONE = {"superseded leased": "superseded", SHUT: "dropped (deleted)"}
SAME = {
    **to("pending", *FREE, *IN_FLIGHT),
    **to("delivered", *DELIVERED),
    **to("dead", *DEAD),
    **to("superseded", *SUPERSEDED),
    "dropped size": "dropped (size)",
    SHUT: "dropped (deleted)",
    "dropped policy": "dropped (policy)",
    "dropped purged": "dropped (purged)",
}
"""Each state as the ledger names it."""

# --- what is done

ASKED_FOR = Reopen(frozenset({"age", "size", "deleted", "off", "purged"}), body_not_stored=True)


def complete(bench: LedgerBench, claimed: Claim, confirm_ms: int | None) -> bool:
    if claims.is_current(bench.db, claimed):
        bench.acknowledge(claimed, bodies("ses_1 t1", text=version().key)[0])
    return claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=confirm_ms)


def another(bench: LedgerBench) -> Destination:
    return destinations.destination(bench.db, "https://example.invalid", "another", 0)


def adopt_where_known(bench: LedgerBench) -> int:
    """By a destination that has something of the session."""
    other = LedgerBench(bench.db)
    other.destination = another(bench).id
    other.put(version("t0"))
    return adoption.adopt(bench.db, bench.destination, other.destination, now_ms=bench.now_ms)


def rotate(bench: LedgerBench, function: Callable[..., object]) -> bool:
    """Our key is refused, and the folder was captured with another one since."""
    ours = another(bench)
    flow.pause(bench.db, bench.destination, health="refused", reason="401", count=1, probe_ms=1, now_ms=1)
    folders.remember_folder(bench.db, "", ours.id, {}, 1)
    function(bench.db, ours, bench.now_ms)
    return bool(bench.row()["destination_id"] == ours.id)


def see_again(bench: LedgerBench) -> bool:
    versions.see_again(bench.db, bench.destination, version(last_event_ms=300))
    return bool(bench.row()["facts_ms"] == 300)


def claim_after_pause(bench: LedgerBench, probe_ms: int) -> object:
    bench.pause(probe_ms=probe_ms)
    return bench.claim()


def claim_beside(bench: LedgerBench, *, concurrency: int | None = None, kills: int = 0) -> object:
    """While a job of another session is in flight."""
    bench.put(version(session="ses_2"))
    bench.claimed(version(session="ses_2"))
    bench.db.execute("update job set kills = ? where key = ?", (kills, version(session="ses_2").key))
    bench.db.execute("update destination set concurrency = ?", (concurrency,))
    return bench.claim()


def pause(bench: LedgerBench, claimed: Claim, *, is_charged: bool) -> bool:
    return claims.pause(
        bench.db, claimed, FailedAttempt(1, "503"), health="down", count=1, delay_ms=1_000, is_charged=is_charged
    )


FINISHES = ("complete", "dead_letter", "retry_later", "pause", "release", "drop", "hold")
"""They end a claim: True where it stood. Of a job that is not wanted any more they let the lease go all the same."""

Act: TypeAlias = Callable[[LedgerBench, Claim, Unconfirmed], object]
ARROWS: dict[str, tuple[Act, dict[str, str]]] = {
    # in
    "insert the same": (lambda d, *_: d.put(version()) is not Decision.KNOWN, to("pending", "dropped policy")),
    "insert the same, asked for": (
        lambda d, *_: d.put(version(), reopen=ASKED_FOR) is not Decision.KNOWN,
        to("pending", *DROPPED, "body not stored"),
    ),
    "insert the same as newest": (
        lambda d, *_: d.put(version(last_event_ms=300)) is not Decision.KNOWN,
        to("pending", "dropped policy", *SUPERSEDED),
    ),
    "insert an older": (lambda d, *_: d.put(version(content="old", last_event_ms=50)) is Decision.NEW, {}),
    "insert a newer": (
        lambda d, *_: d.put(version(content="newest", last_event_ms=300)) is Decision.NEW,
        to("superseded", *(state for state in CURRENT if state != SHUT)),
    ),
    "insert the same, recalled": (
        lambda d, *_: d.put(replace(version(), is_recall=True), reopen=RECALL) is not Decision.KNOWN,
        to("pending", *FREE, *DELIVERED, *DEAD, *DROPPED),
    ),
    "insert a newer while off": (
        lambda d, *_: d.put(version(content="newest", last_event_ms=300), off=True) is Decision.NEW,
        to("superseded", *(state for state in CURRENT if state != SHUT)),
    ),
    "insert an equal one while off": (lambda d, *_: d.put(version(content="off"), off=True) is Decision.NEW, {}),
    "compare_again": (lambda d, *_: history.compare_again(d.db, "place"), {}),
    "note_reconciled": (lambda d, *_: not history.note_reconciled(d.db, d.destination, "ses_1", 300), {}),
    "forget_record_identities": (lambda d, *_: record_identity.forget_record_identities(d.db, -1) is None, {}),
    "see_again": (
        lambda d, *_: see_again(d),
        {state: after for state, after in SAME.items() if state not in SUPERSEDED},
    ),
    "place_under": (
        lambda d, *_: versions.place_under(d.db, d.destination, "ses_1", version(session="ses_0"), d.now_ms),
        to("superseded", *CURRENT),
    ),
    # out
    "claim": (lambda d, *_: d.claim(), to("pending", *DUE)),
    "claim while paused": (lambda d, *_: claim_after_pause(d, LATER_MS), {}),
    "claim as a probe": (lambda d, *_: claim_after_pause(d, 1_000), to("pending", *DUE)),
    "claim where there is room": (lambda d, *_: claim_beside(d, concurrency=2), to("pending", *DUE)),
    "claim where there is no room": (lambda d, *_: claim_beside(d, concurrency=1), {}),
    "claim beside one that must be alone": (lambda d, *_: claim_beside(d, kills=ISOLATED_KILLS), {}),
    "acknowledge": (
        lambda d, claimed, _: d.acknowledge(claimed, bodies("ses_1 t9")[0]),
        to("pending", *OURS),
    ),
    # Where the acknowledgements go, their job is delivered no sooner than it is posted again.
    "forget_acknowledged": (lambda d, claimed, _: claims.forget_acknowledged(d.db, claimed), {}),
    "complete": (lambda d, claimed, _: complete(d, claimed, None), {**to("delivered", *OURS), **LEASE_GONE}),
    "complete, to be confirmed": (
        lambda d, claimed, _: complete(d, claimed, LATER_MS),
        {**to("delivered", *OURS), **LEASE_GONE},
    ),
    "dead_letter": (lambda d, claimed, _: d.dead_letter(claimed, d.now_ms), {**to("dead", *OURS), **LEASE_GONE}),
    "retry_later": (
        lambda d, claimed, _: d.retry_later(claimed, due_ms=LATER_MS),
        {**to("pending", *OURS), **LEASE_GONE},
    ),
    "retry_later uncharged": (
        lambda d, claimed, _: d.retry_later(claimed, due_ms=LATER_MS, is_charged=False),
        {**to("pending", *OURS), **LEASE_GONE},
    ),
    "pause": (lambda d, claimed, _: pause(d, claimed, is_charged=False), {**to("pending", *OURS), **LEASE_GONE}),
    "pause charged": (lambda d, claimed, _: pause(d, claimed, is_charged=True), {**to("pending", *OURS), **LEASE_GONE}),
    "release": (
        lambda d, claimed, _: claims.release(d.db, claimed, due_ms=LATER_MS, failed=FailedAttempt(1, "503")),
        {**to("pending", *OURS), **LEASE_GONE},
    ),
    "release_all": (lambda d, *_: claims.release_all(d.db, WORKER), {**to("pending", *OURS), **LEASE_GONE}),
    "drop for policy": (
        lambda d, claimed, _: claims.drop(d.db, claimed, "policy", d.now_ms),
        {**to("dropped (policy)", *OURS), **LEASE_GONE},
    ),
    "drop for size": (
        lambda d, claimed, _: claims.drop(d.db, claimed, "size", d.now_ms),
        {**to("dropped (size)", "evicted leased"), **LEASE_GONE},
    ),
    # read back
    "confirmed": (
        lambda d, _, due: confirmations.confirmed(d.db, due, d.now_ms, has_body=True),
        to("delivered", *UNCONFIRMED),
    ),
    "confirmed without body": (
        lambda d, _, due: confirmations.confirmed(d.db, due, d.now_ms, has_body=False),
        to("delivered", *UNCONFIRMED),
    ),
    "not_found_yet": (
        lambda d, _, due: confirmations.not_found_yet(d.db, due, LATER_MS),
        to("delivered", *UNCONFIRMED),
    ),
    "send_again": (lambda d, _, due: confirmations.send_again(d.db, due, d.now_ms), to("pending", *RESENDABLE)),
    "dead_letter_unstored": (
        lambda d, _, due: confirmations.dead_letter_unstored(d.db, due, d.now_ms, "not stored"),
        to("dead", *RESENDABLE),
    ),
    "give_up_confirmation": (
        lambda d, _, due: confirmations.give_up_confirmation(d.db, d.destination, due),
        to("delivered", *UNCONFIRMED),
    ),
    "give_up_confirmations for want of room": (
        lambda d, *_: confirmations.give_up_confirmations(d.db, d.now_ms, bytes_max=0, age_ms_max=DAY_MS),
        to("delivered", "to be confirmed"),
    ),
    "give_up_confirmations of what is old": (
        lambda d, *_: confirmations.give_up_confirmations(d.db, d.now_ms, bytes_max=1 << 20, age_ms_max=0),
        to("delivered", *UNCONFIRMED),
    ),
    "give_up_confirmation of all": (
        lambda d, *_: confirmations.give_up_confirmation(d.db, d.destination),
        to("delivered", *UNCONFIRMED),
    ),
    "look_back": (lambda d, *_: confirmations.look_back(d.db, d.destination, d.now_ms), to("delivered", "delivered")),
    "pause_read_back": (lambda d, *_: readback.pause_read_back(d.db, d.destination, "500", LATER_MS), {}),
    "end_read_back_pause": (lambda d, *_: readback.end_read_back_pause(d.db, d.destination, 1), {}),
    "note_found": (
        lambda d, *_: readback.note_found(d.db, d.destination, readback.Control(uuid.UUID(int=7), 1, 1)),
        {},
    ),
    "note_missed": (lambda d, *_: readback.note_missed(d.db, d.destination, 1), {}),
    "resume_read_back": (lambda d, *_: readback.resume_read_back(d.db, d.destination), {}),
    # letters
    "retry_dead": (lambda d, *_: dead_letters.retry_dead(d.db, Choice(), d.now_ms), to("pending", *DEAD)),
    "purge_dead": (lambda d, *_: dead_letters.purge_dead(d.db, Choice(), d.now_ms), to("dropped (purged)", *DEAD)),
    # policies
    "hold": (
        lambda d, claimed, _: policy_enforcement.hold(d.db, claimed, due_ms=LATER_MS, reason="off"),
        {**to("pending", *OURS), **LEASE_GONE},
    ),
    "hold_folder": (
        lambda d, *_: policy_enforcement.hold_folder(d.db, d.destination, "", due_ms=LATER_MS, reason="broken"),
        to("pending", *FREE),
    ),
    "hold_folder no longer": (
        lambda d, *_: policy_enforcement.hold_folder(d.db, d.destination, "", due_ms=d.now_ms, reason=None),
        to("pending", "held"),
    ),
    "drop_looser": (
        lambda d, *_: policy_enforcement.drop_looser(d.db, d.destination, "", "", d.now_ms),
        to("dropped (policy)", *FREE, *DEAD),
    ),
    "drop_looser of another policy": (
        lambda d, *_: policy_enforcement.drop_looser(d.db, d.destination, "", "x", d.now_ms),
        {},
    ),
    # upkeep
    "recover": (
        lambda d, *_: maintenance.recover(d.db, d.now_ms, [WORKER, "worker-b"]),
        {**to("pending", *IN_FLIGHT), **LEASE_GONE},
    ),
    "reset_future_times": (lambda d, *_: maintenance.reset_future_times(d.db, d.now_ms), to("pending", "put off")),
    "steady_ms": (lambda d, *_: maintenance.steady_ms(d.db, d.now_ms) < 0, {}),
    "drop_aged": (lambda d, *_: pruning.drop_aged(d.db, d.now_ms, 0), to("dropped (age)", *FREE)),
    "drop_oversize": (
        lambda d, *_: pruning.drop_oversize(d.db, d.now_ms, 0),
        {name: "dropped (size)" for name in (*FREE, *DEAD) if name not in EVICTED},
    ),
    "drop_oversize of folders": (
        lambda d, *_: pruning.drop_oversize(d.db, d.now_ms, 1 << 40, {"": 0, "another": 0}),
        {name: "dropped (size)" for name in (*FREE, *DEAD) if name not in EVICTED},
    ),
    "drop_oversize of another folder": (
        lambda d, *_: pruning.drop_oversize(d.db, d.now_ms, 1 << 40, {"another": 0}),
        {},
    ),
    "drop_session": (
        # Counts what is dropped; what is delivered it only lets go of.
        lambda d, *_: pruning.drop_session(d.db, d.destination, "ses_1", d.now_ms) or None,
        {**to("dropped (deleted)", *FREE, *IN_FLIGHT, *DEAD), **to("delivered", *UNCONFIRMED)},
    ),
    "forget_acknowledgements": (
        lambda d, *_: pruning.forget_acknowledgements(d.db, 100 * DAY_MS),
        to("delivered", *(state for state in DELIVERED if state != "body not stored")),
    ),
    # room
    "give_up_bodies": (
        lambda d, claimed, _: eviction.give_up_bodies(d.db, [claimed.job_id], "store"),
        {name: SAME[name] for name in (*FREE, *DEAD) if name not in EVICTED},
    ),
    "take_recaptured": (
        lambda d, claimed, _: eviction.take_recaptured(
            d.db, claimed, Recaptured(claimed.key, tuple(bodies("ses_1 t1", 1, "other")), "ab12")
        ),
        {"evicted leased": SAME["evicted leased"]},
    ),
    # notices
    "note_notice": (lambda d, *_: notices.note_notice(d.db, "store", "ses_1", "", d.now_ms) < 0, {}),
    "note_wait": (lambda d, *_: notices.note_wait(d.db, "store", ["ses_1"], "away"), {}),
    "note_turns_read": (
        lambda d, *_: notices.note_turns_read(d.db, d.destination, "ses_1", {"t1": TurnRead(2, d.now_ms, "{}")}),
        {},
    ),
    "settle_notices": (lambda d, *_: notices.settle_notices(d.db, "store", {"ses_1": d.now_ms}), {}),
    "forget_notices": (lambda d, *_: notices.forget_notices(d.db, "store", d.now_ms), {}),
    # adoption
    "give_up": (
        lambda d, *_: adoption.give_up(d.db, d.destination, d.now_ms),
        to("dropped (purged)", *FREE, *DEAD),
    ),
    "adopt": (lambda d, *_: adoption.adopt(d.db, d.destination, another(d).id, now_ms=d.now_ms), SAME),
    "adopt where the session is known": (lambda d, *_: adopt_where_known(d), to("superseded", *FREE)),
    "adopt_rotated": (lambda d, *_: rotate(d, adoption.adopt_rotated), SAME),
    "take_over": (lambda d, *_: rotate(d, adoption.take_over), SAME),
}
"""Each function that writes and its circumstances, and the states that it leaves for which other. Everything else
stays untouched."""

READERS = {
    "last_delivery", "newest_sessions", "session_counts", "turn_states",
    "acknowledged", "arrivals", "attempts", "bodies", "brought_along", "by_machine",
    "candidates", "conditions", "confirmations", "control",
    "counted_bytes", "counts", "any_sealed", "current_turns", "dead_groups", "dead_keys", "dead_letters",
    "dropped_groups", "dropped_letters",
    "due_for_confirmation", "evicted", "encoding_elsewhere", "errors", "excess_of_folders", "exported",
    "exported_elsewhere",
    "exported_sessions", "session_identity", "has_turn", "held", "held_bytes", "held_folders", "is_all_held",
    "is_any_bound",
    "is_current",
    "is_isolated_due",
    "is_evicted", "is_history", "is_pending", "is_whole", "latest_ms", "leasing_workers",
    "letters_of", "letters_of_session", "made_under", "may_refill", "missing", "of_machine", "next_confirmation_ms",
    "first_due_ms", "next_due_ms", "next_of_session",
    "left_unread", "open_notices", "pending_keys", "turns_read", "unread", "unread_sessions",
    "read_back_failures", "reconciled_ms", "relies_on", "sendable", "decision_on", "to_wake", "trusted_age_ms",
    "unacknowledged", "was_sent_otherwise", "without_bodies",
    "delivered_turns", "job_by_id", "jobs", "jobs_of_key", "record_states", "sent_in_all", "sent_of_session",
    "sent_since",
    "session_names", "watched",
}  # fmt: skip
TABLES = (
    "notice", "attempt", "bundle", "footprint", "record", "acknowledgement", "job", "turn", "session", "folder",
    "confirmation", "destination",
)  # fmt: skip


def in_state(db: sqlite3.Connection, state: str) -> tuple[LedgerBench, Claim, Unconfirmed]:
    """A ledger with one job in that state, a claim of it, and what was read of it to be confirmed.

    Both have the number of its last attempt: so the state alone keeps them from changing anything.
    """
    for table in TABLES:
        db.execute(f"delete from {table}")  # noqa: S608 - names from above
    bench = LedgerBench(db)
    bench.put(version())
    claimed = bench.claimed()
    STATES[state](bench, claimed)
    row = bench.row()
    if state != "retaken":
        claimed = replace(claimed, attempt=row["attempt"])
    [body] = bodies("ses_1 t1")
    due = Unconfirmed(
        job_id=row["id"],
        turn_id=row["turn_id"],
        key=row["key"],
        attempt=row["attempt"],
        request_id=body.request_id,
        start_ms=None,
        body_bytes=len(body.body),
        delivered_ms=1_000,
        resends=0,
    )
    bench.now_ms = 2_000
    return bench, claimed, due


def written(bench: LedgerBench, claimed: Claim, *, facts: bool) -> dict[str, object]:
    """All that the ledger has of the job."""
    row = bench.db.execute("select * from job where id = ?", (claimed.job_id,)).fetchone()
    noted = bench.db.execute("select count(*) from acknowledgement where turn_id = ?", (claimed.turn_id,)).fetchone()
    kept = [
        bench.db.execute(f"select count(*) from {table} where job_id = ?", (claimed.job_id,)).fetchone()[0]  # noqa: S608
        for table in ("record", "bundle")
    ]
    return {**{name: row[name] for name in row.keys() if facts or name != "facts_ms"}, "noted": noted[0], "kept": kept}  # noqa: SIM118


@pytest.mark.parametrize("name", ARROWS)
def test_each_function_changes_the_states_that_it_names_and_no_other(db: sqlite3.Connection, name: str) -> None:
    without_waiting(db)
    act, arrows = ARROWS[name]
    assert set(arrows) <= set(STATES)
    # A version that is known already may be seen later.
    facts = not name.startswith("insert")
    for state in STATES:
        bench, claimed, due = in_state(db, state)
        before = written(bench, claimed, facts=facts)
        answer = act(bench, claimed, due)
        after = written(bench, claimed, facts=facts)
        # What a late worker heard of Helicone counts, whoever sends the job now.
        if name == "acknowledge":
            del before["noted"], after["noted"]
        if state not in arrows:
            assert after == before, state
            # Beside a superseded version there is the newer one, which many of them find something to do with.
            assert not answer or state in SUPERSEDED, state
            continue
        if name.replace(",", " ").split()[0] in FINISHES:
            assert answer is (state not in LEASE_GONE), state
        assert answer or answer is None or state in LEASE_GONE, state
        assert after != before, state
        reason = f" ({after['drop_reason']})" if after["drop_reason"] else ""
        assert f"{after['state']}{reason}" == arrows[state], state
        is_sendable = after["state"] in {"pending", "dead"} or after["confirm_ms"] is not None
        assert is_sendable or after["kept"] == [0, 0], state
        is_evicted = name == "give_up_bodies" or (state in EVICTED and not name.startswith("insert"))
        bundles = 0 if is_evicted else 1
        assert after["kept"] == [1, bundles] or after["state"] not in {"pending", "dead"}, state


def test_every_state_of_the_schema_is_in_the_matrix(db: sqlite3.Connection) -> None:
    seen = set()
    for state, after in SAME.items():
        bench, _, _ = in_state(db, state)
        assert bench.state() == after
        seen.add(bench.row()["state"])
    assert set(SAME) == set(STATES)
    assert seen == {"pending", "delivered", "dead", "superseded", "dropped"}


BESIDE_JOBS = {"counters", "destinations", "erasure", "fingerprint", "flow", "folders", "incidents"}
PARTS = {
    "as_json",
    "decide",
    "excess",
    "finish",
    "forget_contents",
    "forget_session",
    "kept",
    "oldest",
    "pack",
    "policy_id",
    "read",
    "read_current",
    "session_name",
    "supersede_where",
    "unpack",
    "write",
    "write_records",
}
"""What the ledger's functions are made of: each works inside of the transaction of its caller, or on values."""


def test_every_function_of_the_ledger_that_writes_is_in_the_matrix() -> None:
    modules = [import_module(f"app.ledger.{one.name}") for one in iter_modules(ledger.__path__)]
    functions = {
        name
        for module in modules
        if module.__name__.rpartition(".")[2] not in BESIDE_JOBS
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ == module.__name__ and not name.startswith("_")
    }
    in_matrix = {name.replace(",", " ").split()[0] for name in ARROWS}
    assert in_matrix.isdisjoint(READERS)
    assert functions - PARTS == in_matrix | READERS

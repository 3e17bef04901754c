"""The ledger: every rule about jobs, one function per transition, the state it leaves named in the WHERE.

    versions    in: a turn's version becomes a job, or supersedes one
    claims      out: a job is claimed, acknowledged record by record, finished
    upkeep      what no ring brings: orphans, rings, pruning
    adoption    jobs that change their destination
    letters     what is dead or dropped, for who looks into it; dead ones come back or go for good
    readings    numbers, for people

The picture of the states stands at the head of migrations/0001_initial.sql, and what came to it in 0002_health.sql.
Functions take the connection first; those that need several statements open their own transaction, so the caller must
not be inside one. Times come in as milliseconds UTC: nothing here reads a clock.
"""

from app.ledger.adoption import adopt, adopt_rotated, take_over
from app.ledger.claims import (
    ATTEMPTS_KEPT,
    ISOLATED_KILLS,
    abandon,
    acknowledge,
    bury,
    claim,
    complete,
    give_back,
    give_back_all,
    is_alone,
    is_current,
    set_back,
    unacknowledged,
)
from app.ledger.job import BATCH, SESSION_RECORD, Body, Claim, Failure, LedgerError, Standing, Version, bodies
from app.ledger.letters import (
    Attempt,
    Choice,
    Group,
    Letter,
    attempts,
    dead_groups,
    dead_keys,
    dead_letters,
    dropped_groups,
    dropped_letters,
    letters_of,
    purge_dead,
    retry_dead,
)
from app.ledger.readings import (
    Conditions,
    Counts,
    conditions,
    counts,
    errors,
    is_pending,
    latest_ms,
    pending_keys,
    sendable,
)
from app.ledger.upkeep import (
    KILLS_MAX,
    RING_AGAIN_MS,
    drop_aged,
    drop_oversize,
    drop_session,
    forget_acknowledgements,
    is_steady,
    leasing_workers,
    next_due_ms,
    next_of_session,
    recover,
    shrink,
    to_ring,
    unwarp,
)
from app.ledger.versions import frozen, insert, place_under, see_again, standing

__all__ = [
    "ATTEMPTS_KEPT",
    "BATCH",
    "ISOLATED_KILLS",
    "KILLS_MAX",
    "RING_AGAIN_MS",
    "SESSION_RECORD",
    "Attempt",
    "Body",
    "Choice",
    "Claim",
    "Conditions",
    "Counts",
    "Failure",
    "Group",
    "LedgerError",
    "Letter",
    "Standing",
    "Version",
    "abandon",
    "acknowledge",
    "adopt",
    "adopt_rotated",
    "attempts",
    "bodies",
    "bury",
    "claim",
    "complete",
    "conditions",
    "counts",
    "dead_groups",
    "dead_keys",
    "dead_letters",
    "drop_aged",
    "drop_oversize",
    "drop_session",
    "dropped_groups",
    "dropped_letters",
    "errors",
    "forget_acknowledgements",
    "frozen",
    "give_back",
    "give_back_all",
    "insert",
    "is_alone",
    "is_current",
    "is_pending",
    "is_steady",
    "latest_ms",
    "leasing_workers",
    "letters_of",
    "next_due_ms",
    "next_of_session",
    "pending_keys",
    "place_under",
    "purge_dead",
    "recover",
    "retry_dead",
    "see_again",
    "sendable",
    "set_back",
    "shrink",
    "standing",
    "take_over",
    "to_ring",
    "unacknowledged",
    "unwarp",
]

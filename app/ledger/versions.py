"""In: versions of turns become jobs; a newer one supersedes an older one, and never the other way."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from app import crashpoint, destination
from app.connection import transaction
from app.identity import Encoding, Identity
from app.ledger import footprint
from app.ledger.bundle import pack
from app.ledger.job import SESSION_RECORD, Body, Kept, LedgerError, Standing, Version


def frozen(db: sqlite3.Connection, destination_id: int, session: str) -> tuple[str, Identity] | None:
    """Root and identity that the session's first record was made with, None for a session not seen."""
    row = db.execute(
        "select id, root_name, user_id, encoding, shown_name from session where destination_id = ? and name = ?",
        (destination_id, session),
    ).fetchone()
    if row is None:
        return None
    name = row["shown_name"] if row["encoding"] > 1 else footprint.session_name(db, row["id"])
    return row["root_name"], Identity(row["user_id"], row["encoding"], name)


def encoding_elsewhere(db: sqlite3.Connection, session: str) -> Encoding | None:
    """How the session is written at whatever destination it was captured for: two keys may be of one organisation."""
    found: Encoding | None = db.execute(
        "select min(encoding) from session where name = ? and destination_id in (select id from destination)",
        (session,),
    ).fetchone()[0]
    return found


def standing(
    db: sqlite3.Connection, destination_id: int, version: Version, *, reopen: Collection[str] = (), off: bool = False
) -> Standing:
    """What `insert` would do with this version now; a cheap look before its bodies are made.

    `reopen` names what the caller asks to have back: the reasons of dropped jobs; `body_not_stored` for delivered ones
    of which Helicone kept the numbers only; states (`delivered`, `dead`, `pending`: not in flight) for jobs to be made
    anew; `sealed`. With `off` (export is switched off) a version says nothing about a turn that the ledger has
    already, unless it is newer.
    """
    found = _standing(db, destination_id, version, reopen=reopen, off=off)
    is_wanted = found in {Standing.NEW, Standing.REOPENED} and "sealed" not in reopen
    if is_wanted and is_sealed(db, destination_id, version.session, version.turn, but_for=version.key):
        return Standing.SHUT
    return found


def _standing(
    db: sqlite3.Connection, destination_id: int, version: Version, *, reopen: Collection[str], off: bool
) -> Standing:
    current = db.execute(
        "select j.key, iif(j.lease_until_ms is null, j.state, 'in flight') as state, j.drop_reason, j.facts_ms,"
        " j.is_sealed, j.body_not_stored from session s"
        " join turn t on t.session_id = s.id and t.name = ?"
        " join job j on j.turn_id = t.id and j.state <> 'superseded'"
        " where s.destination_id = ? and s.name = ?",
        (version.turn, destination_id, version.session),
    ).fetchone()
    if current is not None and current["key"] == version.key:
        reasons = {current["state"], current["drop_reason"], "body_not_stored" if current["body_not_stored"] else None}
        # Whoever captures it under the very policy that was too loose once does so because it no longer is.
        return Standing.KNOWN if reasons.isdisjoint({"policy", *reopen}) else Standing.REOPENED
    if current is not None and current["is_sealed"] and "sealed" not in reopen:
        return Standing.SHUT
    if current is not None and current["drop_reason"] in {"off", "deleted"} and current["drop_reason"] not in reopen:
        return Standing.SHUT
    # OpenCode's update time moves on with every turn: it does not make the session's own record a newer one.
    if off and current is not None and (version.turn == SESSION_RECORD or version.facts_ms <= current["facts_ms"]):
        return Standing.KNOWN
    exists = db.execute(
        "select 1 from job where destination_id = ? and key = ?", (destination_id, version.key)
    ).fetchone()
    if current is not None and version.facts_ms < current["facts_ms"]:
        return Standing.KNOWN if exists else Standing.SUPERSEDED
    return Standing.REOPENED if exists else Standing.NEW


def is_sealed(
    db: sqlite3.Connection, destination_id: int, session: str, turn: str | None = None, *, but_for: str = ""
) -> bool:
    """Whether this turn, or any of the session, was sealed under another key than `but_for`.

    At any destination of the same endpoint: two API keys of one organisation share the rows at Helicone.
    """
    row = db.execute(
        "select 1 from session s cross join turn t on t.session_id = s.id"
        f"{'' if turn is None else ' and t.name = :turn'}"
        " cross join job j on j.turn_id = t.id and j.state <> 'superseded' and j.is_sealed and j.key <> :key"
        " where s.name = :session and s.destination_id in (select id from destination"
        "  where endpoint in ((select endpoint from destination where id = :destination), '')) limit 1",
        {"session": session, "turn": turn, "key": but_for, "destination": destination_id},
    ).fetchone()
    return row is not None


@dataclass(frozen=True, slots=True)
class Current:
    key: str
    policy: str
    """What it was made under, as `Policy.facts` says it; '' where that was not kept."""
    facts_ms: int


def current_as(db: sqlite3.Connection, destination_id: int, version: Version) -> Current | None:
    """What is current of this version's turn, if that was delivered, waits or is dead."""
    row = db.execute(
        "select j.key, coalesce(p.facts, '') as policy, j.facts_ms from session s"
        " join turn t on t.session_id = s.id and t.name = ?"
        " join job j on j.turn_id = t.id and j.state in ('delivered', 'pending', 'dead')"
        " left join policy p on p.id = j.policy_id where s.destination_id = ? and s.name = ?",
        (version.turn, destination_id, version.session),
    ).fetchone()
    return None if row is None else Current(row["key"], row["policy"], row["facts_ms"])


def see_again(db: sqlite3.Connection, destination_id: int, version: Version) -> None:
    """The same facts seen later: keep their latest time, so that an older version stays older."""
    db.execute(
        "update job set facts_ms = ? where destination_id = ? and key = ? and state <> 'superseded' and facts_ms < ?",
        (version.facts_ms, destination_id, version.key, version.facts_ms),
    )


def insert(  # noqa: PLR0913 - the row, and what decides whether it is wanted
    db: sqlite3.Connection,
    destination_id: int,
    version: Version,
    bodies: Iterable[Body | Kept],
    *,
    now_ms: int,
    reopen: Collection[str] = (),
    off: bool = False,
    judge: Callable[[], Standing] | None = None,
) -> Standing:
    """(nothing) -> pending, superseded -> pending or dropped -> pending, in one transaction; idempotent by key.

    The version that was current becomes superseded; what replaces a recall that was not delivered is one itself. With
    `off` the job is born dropped, without bodies. `judge` is asked, inside the transaction, in place of `standing` by
    whoever knows more reasons against it. The bodies are asked for before the transaction, one after the other.
    Raises LedgerError for a key that another turn has.
    """
    contents = _contents(() if off else bodies)
    with transaction(db):
        verdict = judge() if judge else standing(db, destination_id, version, reopen=reopen, off=off)
        if verdict in {Standing.KNOWN, Standing.SHUT}:
            see_again(db, destination_id, version)
            return verdict
        # An older version tells an older folder.
        here = replace(version, folder="") if verdict is Standing.SUPERSEDED else version
        session_id, turn_id = _place(db, destination_id, here)
        if verdict is Standing.SUPERSEDED:
            _write(db, destination_id, session_id, turn_id, version, _contents(()), now_ms, "superseded", None)
            return verdict
        if version.is_recall:
            _disbelieve_recall(db, turn_id, version.key)
            destination.note_unerased(db, now_ms)
        elif _is_recall_due(db, turn_id):
            version = replace(version, is_recall=True)
        _supersede(db, turn_id, version.key, now_ms)
        state = "dropped" if off else "pending"
        _write(
            db,
            destination_id,
            session_id,
            turn_id,
            version,
            contents,
            now_ms,
            state,
            "off" if off else None,
        )
        crashpoint.reach("enqueue.inserting")
        return verdict


def _disbelieve_recall(db: sqlite3.Connection, turn_id: int, key: str) -> None:
    """Whoever asks for the same recall once more has not seen it at Helicone: all of its records are posted again."""
    db.execute(
        "delete from acknowledgement where turn_id = ? and exists (select 1 from job where turn_id = ? and key = ?"
        " and is_recall = 1 and state = 'delivered')",
        (turn_id, turn_id, key),
    )


def _is_recall_due(db: sqlite3.Connection, turn_id: int) -> bool:
    """Whether somebody asked to have the turn overwritten, and that has not happened yet."""
    row = db.execute(
        "select 1 from job where turn_id = ? and is_recall = 1 and state in ('pending', 'dead', 'dropped')", (turn_id,)
    ).fetchone()
    return row is not None


def _place(db: sqlite3.Connection, destination_id: int, version: Version) -> tuple[int, int]:
    db.execute(
        "insert into session (destination_id, name, root_name, user_id, folder, encoding, shown_name)"
        " values (?, ?, ?, ?, ?, ?, ?) on conflict do update set"
        # Captured first while export was off: nothing was fixed.
        " shown_name = iif(encoding > 1, coalesce(shown_name, excluded.shown_name), shown_name),"
        # Moved: what waits of it keeps to the settings of where it is now, as what is captured of it does. (A file that
        # is imported may name any folder; what a hook never saw says nothing about what is withheld there.)
        " folder = iif(exists(select 1 from folder f where f.hash = excluded.folder and f.hash <> ''), excluded.folder,"
        " session.folder)"
        " where encoding > 1 and shown_name is null or excluded.folder <> session.folder",
        (
            destination_id,
            version.session,
            version.root,
            version.user_id,
            version.folder,
            version.encoding,
            version.session_name,
        ),
    )
    session_id = int(
        db.execute(
            "select id from session where destination_id = ? and name = ?", (destination_id, version.session)
        ).fetchone()[0]
    )
    db.execute("insert into turn (session_id, name) values (?, ?) on conflict do nothing", (session_id, version.turn))
    turn_id = int(
        db.execute("select id from turn where session_id = ? and name = ?", (session_id, version.turn)).fetchone()[0]
    )
    return session_id, turn_id


def _supersede(db: sqlite3.Connection, turn_id: int, key: str, now_ms: int) -> None:
    """pending, delivered, dead or dropped -> superseded, for the version of this turn that is current so far.

    A lease stays: until its worker lets go, nothing else of the session may be in flight.
    """
    supersede_where(db, "turn_id = :turn and key <> :key", {"turn": turn_id, "key": key}, now_ms)


def supersede_where(db: sqlite3.Connection, condition: str, arguments: dict[str, object], now_ms: int) -> int:
    # What was accepted and not yet seen at Helicone proves nothing for the version that comes.
    db.execute(
        "delete from acknowledgement where (turn_id, request_id) in (select j.turn_id, r.request_id from job j"
        f" join record r on r.job_id = j.id where j.confirm_ms is not null and j.id in (select id from job"
        f" where {condition} and state <> 'superseded'))",
        {**arguments, "now": now_ms},
    )
    rows = db.execute(
        "update job set state = 'superseded', drop_reason = null, due_ms = null, finished_ms = :now, confirm_ms = null,"
        f" body_bytes = 0 where {condition} and state <> 'superseded' returning id",
        {**arguments, "now": now_ms},
    ).fetchall()
    forget_contents(db, [row["id"] for row in rows])
    return len(rows)


def forget_contents(db: sqlite3.Connection, job_ids: Sequence[int]) -> None:
    """The bodies of jobs that nobody will post any more, and what their attempts came to."""
    for table in ("record", "bundle", "attempt"):
        db.executemany(f"delete from {table} where job_id = ?", [(job_id,) for job_id in job_ids])


class _Contents(NamedTuple):
    """Of a job, ready to be written."""

    records: list[Kept]
    here: list[Kept]
    """Those that have a body."""
    bundle: bytes


def _contents(bodies: Iterable[Body | Kept]) -> _Contents:
    records: list[Kept] = []
    here: list[Kept] = []

    def noted() -> Iterator[bytes]:
        for one in bodies:
            records.append(Kept(one.request_id, one.digest, one.body_bytes, one.frozen))
            if isinstance(one, Body):
                here.append(records[-1])
                yield one.body

    bundle = pack(noted())
    return _Contents(records, here, bundle if here else b"")


def _write(  # noqa: PLR0913 - one row's columns
    db: sqlite3.Connection,
    destination_id: int,
    session_id: int,
    turn_id: int,
    version: Version,
    contents: _Contents,
    now_ms: int,
    state: str,
    drop_reason: str | None,
) -> None:
    pending = state == "pending"
    row = db.execute(
        "insert into job (destination_id, session_id, turn_id, policy_id, key, state, drop_reason, facts_ms,"
        " enqueued_ms, due_ms, finished_ms, record_count, body_bytes, is_history, is_recall, is_sealed, known_marks)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " on conflict (destination_id, key) do update set state = excluded.state, drop_reason = excluded.drop_reason,"
        " policy_id = excluded.policy_id, known_marks = excluded.known_marks,"
        " is_history = excluded.is_history, is_recall = excluded.is_recall, is_sealed = excluded.is_sealed,"
        " facts_ms = excluded.facts_ms, enqueued_ms = excluded.enqueued_ms, due_ms = excluded.due_ms,"
        " finished_ms = excluded.finished_ms, record_count = excluded.record_count, body_bytes = excluded.body_bytes,"
        # The attempt number moves on: a worker that still posts the old version must not finish this one.
        " attempt = attempt + 1, lease_until_ms = null, worker = null,"
        " setbacks = 0, failures = 0, passes_seen = null, kills = 0, attempted_ms = null, error = null,"
        " confirm_ms = null, confirmed_ms = null, resends = 0, body_not_stored = 0, hold_reason = null"
        # Which of these it may be, `standing` has decided.
        " where (state in ('superseded', 'dropped', 'delivered', 'dead')"
        "  or state = 'pending' and lease_until_ms is null)"
        " and turn_id = excluded.turn_id returning id",
        (
            destination_id,
            session_id,
            turn_id,
            policy_id(db, version.policy),
            version.key,
            state,
            drop_reason,
            version.facts_ms,
            now_ms,
            now_ms if pending else None,
            None if pending else now_ms,
            len(contents.records),
            len(contents.bundle),
            version.is_history,
            version.is_recall,
            version.is_sealed,
            version.known_marks,
        ),
    ).fetchone()
    if row is None:
        raise LedgerError(f"job {version.key[:12]} belongs to another turn than {version.turn}")
    forget_contents(db, [row["id"]])
    footprint.write(db, row["id"], contents.here)
    write_records(db, row["id"], contents.records)
    if contents.bundle:
        db.execute("insert into bundle (job_id, bodies) values (?, ?)", (row["id"], contents.bundle))


def write_records(db: sqlite3.Connection, job_id: int, bodies: Sequence[Body | Kept]) -> None:
    """What each body of a job must be."""
    db.executemany(
        "insert into record (job_id, position, request_id, digest, body_bytes) values (?, ?, ?, ?, ?)",
        [
            (job_id, position, body.request_id.bytes, body.digest, body.body_bytes)
            for position, body in enumerate(bodies)
        ],
    )


def policy_id(db: sqlite3.Connection, facts: str) -> int | None:
    if not facts:
        return None
    db.execute("insert into policy (facts) values (?) on conflict do nothing", (facts,))
    return int(db.execute("select id from policy where facts = ?", (facts,)).fetchone()[0])


def place_under(
    db: sqlite3.Connection,
    destination_id: int,
    child: str,
    parent: Version,
    now_ms: int,
    *,
    reopen: Collection[str] = (),
) -> int:
    """Note that session `child` is shown inside `parent.root`; what it exported as its own root is superseded.

    Its records come again, under the same request ids, with the root's turn. Returns the number of jobs superseded.
    What was sealed stays as it is, unless `sealed` is to be reopened.
    """
    known = frozen(db, destination_id, child)
    if known is not None and known[0] == parent.root:
        return 0
    with transaction(db):
        if "sealed" not in reopen and is_sealed(db, destination_id, child):
            return 0
        row = db.execute(
            "insert into session (destination_id, name, root_name, user_id, folder, encoding) values (?, ?, ?, ?, ?, ?)"
            " on conflict (destination_id, name) do update set root_name = excluded.root_name returning id",
            (destination_id, child, parent.root, parent.user_id, parent.folder, parent.encoding),
        ).fetchone()
        return supersede_where(db, "session_id = :session", {"session": row["id"]}, now_ms)

"""Versions of turns become jobs: inserts a version, and supersedes an older one, never the other way."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from app.database.connection import Database, Row, lock, lock_rows, transaction
from app.ledger import counters, incidents, record_identity
from app.ledger.compression import pack
from app.ledger.decision import LIVE, Current, Decision, Known, Reopen, decide
from app.ledger.job import Body, Kept, LedgerError, Version
from app.runtime import failpoint
from app.transcript.identity import Encoding, Identity

_Begin: TypeAlias = Literal["pending", "superseded", "dropped"]
"""The states in which a job may begin."""
_Row: TypeAlias = dict[str, object]
"""By the names of its columns."""
_IDENTITY = ("destination_id", "session_id", "turn_id", "key")
"""What of a job's row never changes."""


def session_identity(db: Database, destination_id: int, session: str) -> tuple[str, Identity] | None:
    """Root and identity that the session's first record was made with, None for a session not seen."""
    row = db.execute(
        "select id, root_name, user_id, encoding, shown_name from session where destination_id = ? and name = ?",
        (destination_id, session),
    ).fetchone()
    if row is None:
        return None
    name = row["shown_name"] if row["encoding"] > 1 else record_identity.session_name(db, row["id"])
    return row["root_name"], Identity(row["user_id"], row["encoding"], name)


def encoding_elsewhere(db: Database, session: str) -> Encoding | None:
    """How the session is written at whatever destination it was captured for: two keys may be of one organisation."""
    found: Encoding | None = db.execute(
        "select min(encoding) from session where name = ? and destination_id in (select id from destination)",
        (session,),
    ).fetchone()[0]
    return found


def decision_on(db: Database, destination_id: int, version: Version, reopen: Reopen = LIVE) -> Decision:
    """What `insert` would do with this version now; a cheap look before its bodies are made."""
    return decide(version, _known(db, destination_id, version), reopen)


# A recall sealed something, at any destination of the same endpoint: two API keys of one organisation share the rows at
# Helicone.
_SEALED = (
    "exists (select 1 from session o cross join turn u on u.session_id = o.id cross join job x on x.turn_id = u.id"
    " and x.state <> 'superseded' and x.is_sealed = 1 where {which} and o.destination_id in (select id from destination"
    "  where endpoint in ((select endpoint from destination where id = :destination), '')))"
)
_OF_SESSIONS = _SEALED.format(which="o.name in (select value from json_each(:sessions))")
CURRENT_COLUMNS = (
    "j.key, j.state, j.drop_reason, j.facts_ms, coalesce(p.facts, '') as policy,"
    " j.lease_until_ms is not null as is_in_flight, j.is_sealed, j.body_not_stored"
)


def _known(db: Database, destination_id: int, version: Version) -> Known:
    row = db.execute(
        f"select {CURRENT_COLUMNS},"
        " exists (select 1 from job k where k.destination_id = :destination and k.key = :key) as is_there,"
        f" {_SEALED.format(which='o.name = :session and u.name = :turn and x.key <> :key')} as is_turn_sealed,"
        f" {_OF_SESSIONS} as holds_sealed from (select 1) one"
        " left join session s on s.destination_id = :destination and s.name = :session"
        " left join turn t on t.session_id = s.id and t.name = :turn"
        " left join job j on j.turn_id = t.id and j.state <> 'superseded' left join policy p on p.id = j.policy_id",
        {
            "destination": destination_id,
            "session": version.session,
            "turn": version.turn,
            "key": version.key,
            "sessions": json.dumps(version.subagents),
        },
    ).fetchone()
    return Known(
        current=None if row["key"] is None else read_current(row),
        is_there=bool(row["is_there"]),
        is_sealed=bool(row["is_turn_sealed"]),
        holds_sealed=bool(row["holds_sealed"]),
    )


def read_current(row: Row) -> Current:
    return Current(
        key=row["key"],
        state=row["state"],
        drop_reason=row["drop_reason"],
        last_event_ms=row["facts_ms"],
        policy=row["policy"],
        is_in_flight=bool(row["is_in_flight"]),
        is_sealed=bool(row["is_sealed"]),
        body_not_stored=bool(row["body_not_stored"]),
    )


def any_sealed(db: Database, destination_id: int, sessions: Collection[str]) -> bool:
    """Whether anything of these sessions was sealed."""
    row = db.execute(
        f"select {_OF_SESSIONS} as is_sealed", {"destination": destination_id, "sessions": json.dumps(list(sessions))}
    ).fetchone()
    return bool(row["is_sealed"])


def see_again(db: Database, destination_id: int, version: Version) -> None:
    """The same facts seen later: keep their latest time, so that an older version stays older."""
    db.execute(
        "update job set facts_ms = ? where destination_id = ? and key = ? and state <> 'superseded' and facts_ms < ?",
        (version.last_event_ms, destination_id, version.key, version.last_event_ms),
    )


def insert(
    db: Database,
    destination_id: int,
    version: Version,
    bodies: Iterable[Body | Kept],
    *,
    now_ms: int,
    reopen: Reopen = LIVE,
    seen: Iterable[Version] = (),
) -> Decision:
    """(nothing) or superseded -> pending, in one transaction; idempotent by key.

    So dropped, dead, delivered or pending -> pending, where `reopen` says so. The version that was current becomes
    superseded. What is older than that is born superseded; what is off is dropped, without bodies. The bodies are asked
    for before the transaction, one after the other. In the same transaction others, which are known, are `seen` again:
    each commit writes whole pages. Raises LedgerError for a key that another turn has.
    """
    contents = _contents(() if version.is_off else bodies)
    with transaction(db):
        _hold(db, destination_id, version)
        for one in seen:
            see_again(db, destination_id, one)
        decision = decide(version, _known(db, destination_id, version), reopen)
        match decision:
            case Decision.KNOWN | Decision.REFUSED:
                see_again(db, destination_id, version)
            case Decision.SUPERSEDED:
                # An older version tells an older folder.
                turn = _place(db, destination_id, replace(version, folder=""))
                _write(db, _row(db, turn, version, "superseded", now_ms), _contents(()))
            case _:
                _take(db, _place(db, destination_id, version), version, contents, now_ms)
                failpoint.reach("enqueue.inserting")
    return decision


def _hold(db: Database, destination_id: int, version: Version) -> None:
    """What is decided by is so until the end of the transaction: no other version comes, and nobody claims this one."""
    for session in sorted({version.session, *version.subagents}):
        lock(db, f"session {session}")
    lock_rows(
        db,
        "select 1 from job where state <> 'superseded' and turn_id = (select t.id from session s"
        " join turn t on t.session_id = s.id and t.name = ? where s.destination_id = ? and s.name = ?)",
        (version.turn, destination_id, version.session),
    )


def _take(db: Database, turn: _Turn, version: Version, contents: _Contents, now_ms: int) -> None:
    """Make a version the current one of its turn. What replaces a recall that was not delivered is one itself."""
    if version.is_recall:
        _disbelieve_recall(db, turn.turn_id, version.key)
        incidents.note_unerased(db, now_ms)
    elif _is_recall_due(db, turn.turn_id):
        version = replace(version, is_recall=True)
    # A lease stays: until its worker lets go, nothing else of the session may be in flight.
    supersede_where(db, "turn_id = :turn and key <> :key", {"turn": turn.turn_id, "key": version.key}, now_ms)
    _write(db, _row(db, turn, version, "dropped" if version.is_off else "pending", now_ms), contents)
    counters.bump(db, "redacted", version.redacted, now_ms)


def _disbelieve_recall(db: Database, turn_id: int, key: str) -> None:
    """Whoever asks for the same recall once more has not seen it at Helicone: all of its records are posted again."""
    db.execute(
        "delete from acknowledgement where turn_id = ? and exists (select 1 from job where turn_id = ? and key = ?"
        " and is_recall = 1 and state = 'delivered')",
        (turn_id, turn_id, key),
    )


def _is_recall_due(db: Database, turn_id: int) -> bool:
    """Whether somebody asked to have the turn overwritten, and that has not happened yet."""
    row = db.execute(
        "select 1 from job where turn_id = ? and is_recall = 1 and state in ('pending', 'dead', 'dropped')", (turn_id,)
    ).fetchone()
    return row is not None


class _Turn(NamedTuple):
    destination_id: int
    session_id: int
    turn_id: int


def _place(db: Database, destination_id: int, version: Version) -> _Turn:
    db.execute(
        "insert into session (destination_id, name, root_name, user_id, folder, encoding, shown_name)"
        " values (?, ?, ?, ?, ?, ?, ?) on conflict (destination_id, name) do update set"
        # Captured first while export was off: nothing was fixed.
        " shown_name = iif(session.encoding > 1,"
        "  coalesce(session.shown_name, excluded.shown_name), session.shown_name),"
        # Moved: what waits of it keeps to the settings of where it is now, as what is captured of it does. (A file that
        # is imported may name any folder; what a hook never saw says nothing about what is withheld there.)
        " folder = iif(exists(select 1 from folder f where f.hash = excluded.folder and f.hash <> ''), excluded.folder,"
        " session.folder)"
        " where session.encoding > 1 and session.shown_name is null or excluded.folder <> session.folder",
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
    return _Turn(destination_id, session_id, turn_id)


def supersede_where(db: Database, condition: str, arguments: dict[str, object], now_ms: int) -> int:
    """pending, delivered, dead or dropped -> superseded; the number of jobs."""
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


def forget_contents(db: Database, job_ids: Sequence[int]) -> None:
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
            records.append(Kept(one.request_id, one.digest, one.body_bytes, one.identity_fields))
            if isinstance(one, Body):
                here.append(records[-1])
                yield one.body

    bundle = pack(noted())
    return _Contents(records, here, bundle if here else b"")


AS_NEW = (
    # The attempt number moves on: a worker that still posts the old version must not finish this one.
    "attempt = job.attempt + 1, lease_until_ms = null, worker = null, setbacks = 0, failures = 0, passes_seen = null,"
    " kills = 0, attempted_ms = null, error = null, resends = 0, body_not_stored = 0"
)
"""What a job loses that begins again."""


def _row(db: Database, turn: _Turn, version: Version, state: _Begin, now_ms: int) -> _Row:
    """A job's columns, but for those that its contents fill."""
    is_pending = state == "pending"
    return {
        **turn._asdict(),
        "policy_id": policy_id(db, version.policy),
        "key": version.key,
        "state": state,
        "drop_reason": "off" if state == "dropped" else None,
        "facts_ms": version.last_event_ms,
        "enqueued_ms": now_ms,
        "due_ms": now_ms if is_pending else None,
        "finished_ms": None if is_pending else now_ms,
        "is_history": version.is_history,
        "is_recall": version.is_recall,
        "is_sealed": version.is_sealed,
        "known_marks": version.known_marks,
        "redactions": version.redactions,
    }


def _write(db: Database, row: _Row, contents: _Contents) -> None:
    """Write a job that is new, or that begins again under its key."""
    row = {
        **row,
        "record_count": len(contents.records),
        "record_bytes": sum(one.body_bytes for one in contents.records),
        "body_bytes": len(contents.bundle),
    }
    written = db.execute(
        f"insert into job ({', '.join(row)}) values ({', '.join(f':{name}' for name in row)})"
        " on conflict (destination_id, key) do update set"
        f" {', '.join(f'{name} = excluded.{name}' for name in row if name not in _IDENTITY)}, {AS_NEW},"
        " confirm_ms = null, confirmed_ms = null, hold_reason = null"
        # Which of these it may be, `decide` has said.
        " where (job.state in ('superseded', 'dropped', 'delivered', 'dead')"
        "  or job.state = 'pending' and job.lease_until_ms is null)"
        " and job.turn_id = excluded.turn_id returning id",
        row,
    ).fetchone()
    if written is None:
        raise LedgerError(f"job {str(row['key'])[:12]} belongs to another turn")
    forget_contents(db, [written["id"]])
    record_identity.write(db, written["id"], contents.here)
    write_records(db, written["id"], contents.records)
    if contents.bundle:
        db.execute("insert into bundle (job_id, bodies) values (?, ?)", (written["id"], contents.bundle))


def write_records(db: Database, job_id: int, bodies: Sequence[Body | Kept]) -> None:
    """What each body of a job must be."""
    db.executemany(
        "insert into record (job_id, position, request_id, digest, body_bytes) values (?, ?, ?, ?, ?)",
        [
            (job_id, position, body.request_id.bytes, body.digest, body.body_bytes)
            for position, body in enumerate(bodies)
        ],
    )


def policy_id(db: Database, facts: str) -> int | None:
    if not facts:
        return None
    db.execute("insert into policy (facts) values (?) on conflict do nothing", (facts,))
    return int(db.execute("select id from policy where facts = ?", (facts,)).fetchone()[0])


def place_under(
    db: Database,
    destination_id: int,
    child: str,
    parent: Version,
    now_ms: int,
    *,
    reopen: Reopen = LIVE,
) -> int:
    """Note that session `child` is shown inside `parent.root`; what it exported as its own root is superseded.

    Its records come again, under the same request ids, with the root's turn. Returns the number of jobs superseded.
    What was sealed stays as it is, unless that is to be reopened.
    """
    known = session_identity(db, destination_id, child)
    if known is not None and known[0] == parent.root:
        return 0
    with transaction(db):
        lock(db, f"session {child}")
        if not reopen.sealed and any_sealed(db, destination_id, [child]):
            return 0
        row = db.execute(
            "insert into session (destination_id, name, root_name, user_id, folder, encoding) values (?, ?, ?, ?, ?, ?)"
            " on conflict (destination_id, name) do update set root_name = excluded.root_name returning id",
            (destination_id, child, parent.root, parent.user_id, parent.folder, parent.encoding),
        ).fetchone()
        return supersede_where(
            db, "turn_id in (select id from turn where session_id = :session)", {"session": row["id"]}, now_ms
        )

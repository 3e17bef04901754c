"""Record identities: what Helicone replaces each log by, packed, and kept when the bodies go.

Helicone takes a log for another one unless request id, provider, model, user id and start time are all equal; its
session list groups by id and name. (The user id stands with the session, as does the session's id.)
"""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.database.connection import Database, Row, bytes_on_this_disk
from app.ledger.job import BATCH, Body, IdentityFields, Kept

DIGEST_BYTES = 4
"""Enough to see whether a record would be another one today."""
DELETED = hashlib.sha256(b"").digest()[:DIGEST_BYTES]
"""Of a record that has no bytes: what was sent of it is deleted."""
BESIDE_BODIES_BYTES_MAX = 38_000_000
"""What the ledger's file may hold beside bodies before the oldest record identities are forgotten: 64 MB in all, with a
WAL of 16 MB and logs of 10 MB."""
_ID_BYTES = 16
# What the facts are likely to hold: a dictionary, so that the first of its kind in a short text costs little, too.
# It is part of the format: another one could not read what was written with this.
_USUAL = (
    b'","/tool-task","/tool-todowrite","/tool-webfetch","/tool-write","/tool-glob","/tool-grep","/tool-edit","/tool-read'
    b'","/tool-bash","tool:task","tool:todowrite","tool:webfetch","tool:write","tool:glob","tool:grep","tool:edit'
    b'","tool:read","tool:bash","data:opencode.session","data:opencode.user","openai/gpt-5","anthropic/claude-sonnet-4-5'
    b'"],[["CUSTOM"],["opencode: "],["/opencode/ses_","/msg-10'
)


@dataclass(frozen=True, slots=True)
class RecordIdentity:
    """One log, as it was sent or is to be sent."""

    request_id: uuid.UUID
    digest: bytes
    """The first DIGEST_BYTES of `Body.digest`."""
    identity_fields: IdentityFields


def write(db: Database, job_id: int, bodies: Sequence[Body | Kept]) -> None:
    """Note the bodies that a job gets, beside those that it had: what was sent once can only be overwritten."""
    identities = {one.request_id: one for one in read(db, [job_id]).get(job_id, ())}
    identities |= {
        body.request_id: RecordIdentity(body.request_id, body.digest[:DIGEST_BYTES], body.identity_fields)
        for body in bodies
        if body.identity_fields is not None
    }
    if identities:
        db.execute(
            "insert into footprint (job_id, ids, facts) values (?, ?, ?)"
            " on conflict (job_id) do update set ids = excluded.ids, facts = excluded.facts",
            (job_id, *_pack(list(identities.values()))),
        )


def read(db: Database, job_ids: Sequence[int]) -> Mapping[int, tuple[RecordIdentity, ...]]:
    """By job; a job from before these were kept is not in it."""
    rows = db.execute(
        "select job_id, ids, facts from footprint where job_id in (select cast(value as bigint) from json_each(?))",
        (json.dumps(list(job_ids)),),
    ).fetchall()
    return {row["job_id"]: _unpack(row) for row in rows}


def session_name(db: Database, session_id: int) -> str | None:
    """What the session was called in the last turn of which this is known."""
    row = db.execute(
        "select f.job_id, f.ids, f.facts from turn t join job j on j.turn_id = t.id join footprint f on f.job_id = j.id"
        " where t.session_id = ? order by t.id desc, j.id desc limit 1",
        (session_id,),
    ).fetchone()
    return _unpack(row)[-1].identity_fields.session_name if row else None


def forget_record_identities(db: Database, bytes_max: int = BESIDE_BODIES_BYTES_MAX) -> int:
    """The oldest ones, at most BATCH, while all that the ledger holds beside bodies is more than `bytes_max`."""
    held = db.execute("select coalesce(sum(body_bytes), 0) from tally").fetchone()[0]
    if bytes_on_this_disk(db) - held <= bytes_max:
        return 0
    return db.execute(
        "delete from footprint where job_id in (select job_id from footprint order by job_id limit ?)", (BATCH,)
    ).rowcount


def _pack(identities: Sequence[RecordIdentity]) -> tuple[bytes, bytes]:
    start_ms, later_ms = 0, []
    for one in identities:
        # The difference to the log before is shorter than the time.
        later_ms.append(one.identity_fields.start_ms - start_ms)
        start_ms = one.identity_fields.start_ms
    # Column by column, what is equal stands together.
    columns: list[list[object]] = [
        [one.identity_fields.provider for one in identities],
        [one.identity_fields.session_name for one in identities],
        [one.identity_fields.model for one in identities],
        [one.identity_fields.path for one in identities],
        list(later_ms),
    ]
    text = json.dumps([_once(column) for column in columns], separators=(",", ":")).encode()
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zdict=_USUAL)
    return b"".join(one.request_id.bytes + one.digest for one in identities), packing.compress(text) + packing.flush()


def _once(column: list[object]) -> object:
    """One value where all are equal."""
    return [column[0]] if len(set(column)) == 1 else column


def _unpack(row: Row) -> tuple[RecordIdentity, ...]:
    step = _ID_BYTES + DIGEST_BYTES
    ids = [row["ids"][at : at + step] for at in range(0, len(row["ids"]), step)]
    unpacking = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_USUAL)
    columns = json.loads(unpacking.decompress(row["facts"]) + unpacking.flush())
    whole = [column * len(ids) if len(column) == 1 else column for column in columns]
    found, start_ms = [], 0
    for one, provider, name, model, path, later_ms in zip(ids, *whole, strict=True):
        start_ms += later_ms
        identity_fields = IdentityFields(provider, model, start_ms, name, path)
        found.append(RecordIdentity(uuid.UUID(bytes=one[:_ID_BYTES]), one[_ID_BYTES:], identity_fields))
    return tuple(found)

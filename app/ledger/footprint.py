"""What Helicone replaces each log of a job by, in few bytes: kept when the bodies go, so that a log can be overwritten.

Helicone takes a log for another one unless request id, provider, model, user id and start time are all equal; its
session list groups by id and name. (The user id stands with the session, as does the session's id.)
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sqlite3 import Connection, Row

from app.ledger.job import Body, Frozen

DIGEST_BYTES = 8
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Print:
    """One log, as it was sent or is to be sent."""

    request_id: uuid.UUID
    digest: bytes
    """The first DIGEST_BYTES of `Body.digest`."""
    frozen: Frozen


def write(db: Connection, job_id: int, bodies: Sequence[Body]) -> None:
    """Note the bodies that a job gets, beside those that it had: what was sent once can only be overwritten."""
    prints = {one.request_id: one for one in read(db, [job_id]).get(job_id, ())}
    prints |= {
        body.request_id: Print(body.request_id, body.digest[:DIGEST_BYTES], body.frozen)
        for body in bodies
        if body.frozen is not None
    }
    if prints:
        db.execute(
            "insert into footprint (job_id, ids, facts) values (?, ?, ?)"
            " on conflict (job_id) do update set ids = excluded.ids, facts = excluded.facts",
            (job_id, *_pack(prints.values())),
        )


def read(db: Connection, job_ids: Sequence[int]) -> Mapping[int, tuple[Print, ...]]:
    """By job; a job from before footprints were kept is not in it."""
    rows = db.execute(
        "select job_id, ids, facts from footprint where job_id in (select value from json_each(?))",
        (json.dumps(list(job_ids)),),
    ).fetchall()
    return {row["job_id"]: _unpack(row) for row in rows}


def _pack(prints: Iterable[Print]) -> tuple[bytes, bytes]:
    ids, facts, before_ms = [], [], 0
    for one in prints:
        ids += [one.request_id.bytes, one.digest]
        frozen = one.frozen
        # The difference to the log before is shorter than the time.
        facts.append([frozen.provider, frozen.model, frozen.start_ms - before_ms, frozen.session_name, frozen.path])
        before_ms = frozen.start_ms
    return b"".join(ids), zlib.compress(json.dumps(facts, separators=(",", ":")).encode(), 9)


def _unpack(row: Row) -> tuple[Print, ...]:
    step = _ID_BYTES + DIGEST_BYTES
    found, start_ms = [], 0
    for position, (provider, model, later_ms, name, path) in enumerate(json.loads(zlib.decompress(row["facts"]))):
        one = row["ids"][step * position : step * (position + 1)]
        start_ms += later_ms
        frozen = Frozen(provider, model, start_ms, name, path)
        found.append(Print(uuid.UUID(bytes=one[:_ID_BYTES]), one[_ID_BYTES:], frozen))
    return tuple(found)

"""Values that the ledger's functions take and give: bodies, versions, claims."""

from __future__ import annotations

import hashlib
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from app.database.connection import Database, Row
from app.errors import AppError
from app.ledger.compression import BundleError, unpack
from app.transcript.identity import NEWEST, Encoding

BATCH = 500
"""Rows that one maintenance call touches at the most."""
SESSION_RECORD = "session"
"""The turn name of a session's own root record."""


class LedgerError(AppError):
    """A row holds what it must not hold: a body that does not match its checksum, a key of another turn."""


@dataclass(frozen=True, slots=True)
class IdentityFields:
    """What, beside its request id and its session's user id, makes a log at Helicone the same log for ever."""

    provider: str
    model: str
    start_ms: int
    session_name: str
    """Helicone's list of sessions groups by it."""
    path: str
    """Where it stands in its session. It may change; but what is sent again without it loses its place."""


@dataclass(frozen=True, slots=True)
class Body:
    """One record as it is kept: the bytes to post and who they are at Helicone."""

    request_id: uuid.UUID
    body: bytes
    identity_fields: IdentityFields | None = field(default=None, compare=False)
    """Told when the record is made; read back, it is in what is kept of the job's record identities."""

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.body).digest()[:16]

    @property
    def body_bytes(self) -> int:
        return len(self.body)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record that Helicone took."""

    request_id: uuid.UUID
    digest: bytes
    accepted_ms: int
    before: bytes | None
    """The digest of what was acknowledged under its id when it was posted; None where nothing was."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A record whose body was given up: what it must be, should it be made again."""

    request_id: uuid.UUID
    digest: bytes
    body_bytes: int
    identity_fields: IdentityFields | None = field(default=None, compare=False)
    """As that of `Body`."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one turn, before it is known whether the ledger wants it."""

    session: str
    root: str
    turn: str
    key: str
    last_event_ms: int
    user_id: str
    folder: str
    policy: str = ""
    """What its bodies are made under, as `Policy.facts` says it; '' where that was not kept."""
    is_history: bool = False
    """Brought by a person, and in bulk: what is live goes first."""
    is_recall: bool = False
    """Overwrites what Helicone holds: it is sent also when its session was deleted meanwhile."""
    is_sealed: bool = False
    """No other version of the turn is taken after this one, until somebody asks."""
    encoding: Encoding = NEWEST
    """Like the user id, this and the name are kept with the session by its first version, and by no later one."""
    session_name: str | None = None
    known_marks: str | None = None
    """Of the known values that were taken out of its bodies, as `marks` writes them; None where that is not known."""
    redactions: int | None = None
    """How often something was taken out of its bodies; None where that is not known."""
    redacted: Mapping[str, int] = field(default_factory=dict, compare=False)
    """The same by rule, to be counted as it becomes a job."""
    is_off: bool = False
    """Export is switched off: it is noted without its bodies."""
    subagents: tuple[str, ...] = ()
    """The sessions that are shown inside its turn."""
    key_under: Callable[[str], str | None] | None = field(default=None, compare=False, repr=False)
    """The key that it would have under another policy (`Policy.facts`), None where nobody can tell.

    None in its place: what is there under a stricter policy keeps nobody from this version.
    """


@dataclass(frozen=True, slots=True)
class Claim:
    destination_id: int
    job_id: int
    turn_id: int
    key: str
    session: str
    turn: str
    folder: str
    """Where its session was captured, as the ledger knows folders."""
    policy: str
    """What its bodies were made under; '' where that was not kept."""
    last_event_ms: int
    """Of its version of the turn."""
    attempt: int
    consecutive_failures: int
    """Since a record was last acknowledged, whoever's they were."""
    failures: int
    """Those of them that were the job's own."""
    is_probe: bool
    """The destination was paused: this attempt asks whether it is there again."""
    pause_count: int


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """How an attempt ended that did not end well."""

    ended_ms: int
    error: str
    """Status and class: no text of a transcript."""
    status: int | None = None
    """Of Helicone's answer; None when there was none."""
    answer: str = ""
    """How it began, redacted."""


def bodies(db: Database, job_id: int, key: str, wanted: Callable[[Row], bool] = lambda _: True) -> Iterator[Body]:
    """The bodies of a job in order, one in memory at a time; those of its record rows that are `wanted`.

    Raises LedgerError for a body that does not match its checksum.
    """
    rows = db.execute(
        "select position, request_id, digest, body_bytes, body from record where job_id = ? order by position",
        (job_id,),
    ).fetchall()
    bundle = db.execute("select bodies from bundle where job_id = ?", (job_id,)).fetchone()
    packed = unpack(bundle["bodies"], [row["body_bytes"] for row in rows]) if bundle else map(_from_before, rows)
    for row in rows:
        request_id = uuid.UUID(bytes=row["request_id"])
        try:
            body = Body(request_id, next(packed))
        except (BundleError, zlib.error, TypeError) as error:
            raise LedgerError(f"record {request_id} of job {key[:12]} is damaged") from error
        if body.digest != row["digest"]:
            raise LedgerError(f"record {request_id} of job {key[:12]} does not match its checksum")
        if wanted(row):
            yield body


def kept(db: Database, job_id: int) -> list[Kept]:
    """The records of a job in order, without their bodies."""
    rows = db.execute(
        "select request_id, digest, body_bytes from record where job_id = ? order by position", (job_id,)
    ).fetchall()
    return [Kept(uuid.UUID(bytes=row["request_id"]), row["digest"], row["body_bytes"]) for row in rows]


def _from_before(row: Row) -> bytes:
    """Of a job that was captured before there were bundles. Raises TypeError when its bundle is lost."""
    return zlib.decompress(row["body"])

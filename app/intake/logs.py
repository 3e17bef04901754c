"""Logs: what a machine has sent, as it is kept; or why it is not taken. Functions of values: nothing is asked here."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from app.fleet.tenants import Admission, Tenant
from app.intake import answers
from app.intake.answers import Answer
from app.intake.masks import masked
from app.ledger.job import Body, Version
from app.privacy.user_patterns import PatternError
from app.receiver import handler

log = logging.getLogger("opencode_helicone")

SESSION_CHARS_MAX = 512
"""OpenCode's have 30; an index takes 2,700 bytes."""
MADE_UP_ID = "00000000-0000-0000-0000-000000000000"
"""Stands for the one that Helicone would make up where a log has none, or a malformed one."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A log, as a machine has sent it."""

    raw: bytes
    mode: str | None
    """The export mode that it was made under."""
    turn_ms: int | None
    """When the last thing happened in its turn; both None where the machine does not say."""
    is_given_up: Callable[[], bool] = lambda: False
    """Whether the machine waits for no answer any more: it may have sent a later version meanwhile."""


@dataclass(frozen=True, slots=True)
class Log:
    """One that may be taken."""

    body: Body
    session: str
    taken: Answer
    """What is answered then."""


def read_log(tenant: Tenant, token: str, posted: Posted, now_ms: int) -> Log | Answer:
    """The log as it is kept, its tenant's patterns masked; or why it is not taken."""
    if tenant.policy.export_mode == "metadata_only" and posted.mode != "metadata_only":
        return answers.TOO_MUCH
    try:
        raw = masked(posted.raw, tenant.policy.redact_patterns)
    except PatternError as error:
        log.warning("nothing of tenant %s is taken: %s", tenant.name, error.without_text)
        return answers.NO_PATTERN
    try:
        # Without the request's own headers: the body alone is sent on.
        reply = handler.worker_reply({"authorization": f"Bearer {token}"}, raw, None, now_ms, MADE_UP_ID)
    except (OverflowError, RecursionError, ValueError):  # a number that no clock and no purse has
        return answers.NO_LOG
    if reply.log is None:
        return Answer(reply.status, reply.body, reply.headers)
    session = reply.log.properties.get("Helicone-Session-Id") or reply.log.request_id
    if reply.log.request_id == MADE_UP_ID or len(session) > SESSION_CHARS_MAX:
        return answers.NO_ID
    body = Body(uuid.UUID(reply.log.request_id), raw)
    return Log(body, session, Answer(reply.status, reply.body, reply.headers))


def version_of(admitted: Admission, read: Log, turn_ms: int) -> Version:
    """By its turn's time; of two with the same time, as a recall and what it overwrites, the one that comes later."""
    session, request_id = read.session, str(read.body.request_id)
    key = hashlib.sha256(f"{session}\0{request_id}\0{read.body.digest.hex()}".encode()).hexdigest()
    return Version(session, session, request_id, key, turn_ms, user_id="", folder=admitted.machine)

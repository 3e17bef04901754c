"""Intake: asked under this machine's token what may leave, which a worker keeps in the spool, and what became of logs.

Only who has a token asks. The answer is for all processes of the machine (`app.settings.heard`); delivery goes on
meanwhile under what was said before, and waits where nothing was.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from app.exporters.client import ReadBackError
from app.exporters.transport import Reply, Transport, trust, unreached
from app.ledger.job import Claim
from app.privacy.policy import mode_of
from app.runtime.clock import Reading
from app.settings import heard
from app.settings.heard import ANSWER_BYTES_MAX, Kept
from app.settings.intake import (
    IDS_MAX,
    MACHINE_PATH,
    MODE_HEADER,
    STATES_PATH,
    TURN_HEADER,
    IntakeAnswer,
    IntakeAnswerError,
    RecordState,
    question,
    read_answer,
    read_states,
)
from app.settings.model import Settings

ASK_MS = 300_000
"""Between two questions."""
ASK_SOON_MS = 15_000
"""The same where nothing is known yet that can be used, or the last question was not answered."""
_DEADLINE_S = 30.0
_MEANINGS = {
    200: "no answer of an intake",
    401: "the token is revoked, or never was one",
    404: "there is no intake, or one that is older than this program",
}


class Intake:
    """A connection to an intake. Raises ClientError as it is made."""

    def __init__(self, settings: Settings) -> None:
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self._base = heard.base(settings.endpoint)
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "User-Agent": "opencode-helicone",
        }
        self._transport = Transport(trust(settings.ca_file), headers)

    def close(self) -> None:
        self._transport.close()

    def machine(self) -> IntakeAnswer | None:
        """What it says to this machine; None where that cannot be understood here. Raises ReadBackError.

        A newer one may withhold in a way of which nothing is known here. A page that is no JSON is nobody's answer: so
        does a network answer that wants a login first.
        """
        reply = self._send("GET", MACHINE_PATH, b"")
        if not reply.body.startswith(b"{"):
            raise ReadBackError(f"200: {_MEANINGS[200]}")
        try:
            return None if len(reply.body) >= ANSWER_BYTES_MAX else read_answer(reply.body)
        except IntakeAnswerError:
            return None

    def states(self, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, RecordState]:
        """What became of these records there; of those that it does not know, nothing. Raises ReadBackError."""
        found: dict[uuid.UUID, RecordState] = {}
        for start in range(0, len(request_ids), IDS_MAX):
            asked = {str(one): one for one in request_ids[start : start + IDS_MAX]}
            reply = self._send("POST", STATES_PATH, question(list(asked)))
            try:
                said = read_states(reply.body)
            except IntakeAnswerError:
                raise ReadBackError(f"200: {_MEANINGS[200]}") from None
            found |= {asked[one.lower()]: state for one, state in said.items() if one.lower() in asked}
        return found

    def _send(self, method: str, path: str, body: bytes) -> Reply:
        """An answer with 200. Raises ReadBackError."""
        try:
            reply = self._transport.send(method, self._base + path, {}, body, ANSWER_BYTES_MAX, _DEADLINE_S)
        except httpx.TransportError as error:
            raise ReadBackError(unreached(error, _DEADLINE_S).reason) from error
        if reply.status != 200:  # noqa: PLR2004 - HTTP's own number
            meaning = _MEANINGS.get(reply.status)
            raise ReadBackError(f"{reply.status}: {meaning}" if meaning else str(reply.status))
        return reply


def asked(intake: Intake, before: Kept, now_ms: int) -> Kept:
    """Ask what may leave; what is known then, where that `before` was."""
    try:
        answer = intake.machine()
    except ReadBackError as error:
        return replace(before, asked_ms=now_ms, failure=str(error))
    return Kept(asked_ms=now_ms, failure="", heard_ms=now_ms, answer=answer)


class Asking:
    """Asks from time to time what may leave, and keeps what is answered. One loop's."""

    def __init__(self, intake: Intake, path: Path, log: Callable[[str], None]) -> None:
        """`path`: as of `heard.place`."""
        self._intake = intake
        self._path = path
        self._log = log
        self._due_ms = 0
        """By the steady clock."""
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """A log was refused: what may leave may have changed."""
        self._hurry.set()

    def headers_of(self, claim: Claim) -> dict[str, str]:
        """What the intake is told beside the records of a job."""
        return {MODE_HEADER: mode_of(claim.policy), TURN_HEADER: str(claim.last_event_ms)}

    def step(self, now: Reading) -> bool:
        """Ask if it is time; whether what is paused may be tried again. Raises OSError where it cannot be kept."""
        if now.steady_ms < self._due_ms and not self._hurry.is_set():
            return False
        self._hurry.clear()
        before, basis = heard.kept(self._path), heard.basis(self._path)
        known = asked(self._intake, before, now.wall_ms)
        self._due_ms = now.steady_ms + ASK_SOON_MS
        heard.keep(self._path, known)
        if known.answer is not None and not known.failure:
            self._due_ms = now.steady_ms + ASK_MS
        if known.failure:
            if known.failure != before.failure:
                self._log(f"the intake was asked in vain what may leave: {known.failure}")
            return False
        is_changed = heard.basis(self._path) != basis
        if is_changed:
            self._log(told(known))
        return is_changed or bool(before.failure)

    def close(self) -> None:
        self._intake.close()


def told(known: Kept) -> str:
    """What the intake says of what may leave, for a person; without the patterns, which may be secrets."""
    if known.answer is None:
        return heard.SILENT if known.heard_ms is None else heard.UNUSABLE
    patterns = len(known.answer.redact_patterns)
    return f"the intake says: export mode {known.answer.export_mode}, {patterns} redaction pattern(s)"

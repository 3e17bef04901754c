"""Client of Helicone: posts a record, classifies the answer (retried or never: 413, 429, …), finds stored records.

    bytes ─ Client.post ─▶ status, headers, at most 64 KiB ─ classify ─▶ Outcome

A 200 is no acknowledgement: the worker answers 200 with an error body, jawn answers 200 and may store nothing. What
each answer means was measured on Helicone's own code; the two tables of `classify` are those tables.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from app.exporters.answer import AnswerError, TooManyValuesError, parsed
from app.exporters.client import NO_HEADERS, ClientError, OverlongError, ReadBackError
from app.exporters.encoder import Shown
from app.exporters.helicone.routes import kind_of
from app.exporters.outcome import REASON_CHARS_MAX, Kind, Outcome, date_ms, retry_after_ms
from app.exporters.transport import Transport, trust, unreached
from app.privacy.excerpt import excerpt, repeats
from app.runtime.url import RouteKind

ANSWER_BYTES_MAX = 64 * 1024
READ_BACK_BYTES_MAX = 40 * 1024 * 1024
READ_BACK_PAGE = 100
SINCE_MARGIN_MS = 2_000
"""A query asks so much before the earliest start that it wants. Helicone's server cuts the time to whole seconds, and
ClickHouse 26.9 then leaves out rows of that very second although they are later (run on its engine, 26.9.2)."""
ERROR_CHARS_MAX = 120

_WAIT = frozenset({408, 425, 429})
_UNAVAILABLE = 503
"""With a Retry-After: the server takes nothing for so long. It says nothing of the record (RFC 9110, 15.6.4)."""
_PERMANENT = frozenset({400, 413, 414, 415, 422, 431})
_KEY = re.compile(r"[!-~]+")
_CONNECTION_ERROR = re.compile(
    r"\b(E(CONNREFUSED|CONNRESET|CONNABORTED|NOTFOUND|AI_AGAIN|TIMEDOUT|HOSTUNREACH|NETUNREACH|HOSTDOWN|PIPE))\b"
    r"|connection (error|terminated|refused|reset|timed? ?out)|terminating connection|timeout e(xceeded|xpired)"
    r"|statement timeout|read timeout|the database system is|too many (clients|connections)|connection slots"
    r"|fetch failed|socket hang up",
    re.IGNORECASE,
)
"""What Node, its PostgreSQL client and PostgreSQL say when the database cannot be asked: Helicone's servers pass it on
as the reason why a key was not accepted. `connect ECONNREFUSED` was measured, the others are read in their sources."""

_Row: TypeAlias = dict[str, Any]


class Client:
    """Connections to Helicone under one API key, shared by the worker's threads.

    Honours HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE; loopback is always direct. Never follows a
    redirect, never retries, never compresses, reads no .netrc, keeps no cookies. Raises ClientError.
    """

    def __init__(
        self,
        api_key: str,
        *,
        ca_file: Path | None = None,
        deadline_s: float = 30.0,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        """`redact`: what every kept answer goes through; without it none is kept."""
        if not _KEY.fullmatch(api_key):
            raise ClientError("the API key is empty or holds a character that cannot stand in an HTTP header")
        self._key = api_key
        self._deadline_s = deadline_s
        self._redact = redact
        self._transport = Transport(
            trust(ca_file),
            {
                "Authorization": f"Bearer {api_key}",
                "Content-Type": "application/json",
                # Says who asks; servers at an edge are known to distrust requests without one (not tried here).
                "User-Agent": "opencode-helicone",
            },
        )

    def close(self) -> None:
        self._transport.close()

    def post(
        self,
        url: str,
        body: bytes,
        request_id: str,
        now_ms: int,
        deadline_s: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outcome:
        """Send one record's bytes to a log URL, within the deadline. A Retry-After date counts from `now_ms`."""
        allowed_s = self._deadline_s if deadline_s is None else min(deadline_s, self._deadline_s)
        try:
            answer = self._transport.send("POST", url, headers, body, ANSWER_BYTES_MAX, allowed_s)
        except httpx.TransportError as error:
            return unreached(error, allowed_s)
        redact = self._redacted
        outcome = classify(kind_of(url), answer.status, answer.headers, answer.body, request_id, now_ms, redact)
        if outcome.kind == "accepted":
            return outcome
        reason = outcome.reason
        if repeats(reason, body):
            reason = f"{answer.status}: the answer's text repeats the record and is withheld"
        kept = "" if self._redact is None else excerpt(answer.body, body, redact)
        return replace(outcome, reason=reason, answer=kept)

    def _redacted(self, text: str) -> str:
        bare = text.replace(self._key, "[key]")
        return bare if self._redact is None else self._redact(bare)

    def stored(self, url: str, *, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Which of these requests are stored, and whether with their bodies. Raises ReadBackError.

        None of them starts before `start_ms`. At most READ_BACK_PAGE ids; their bodies come along and are thrown away,
        READ_BACK_BYTES_MAX in all.
        """
        rows = self._rows(url, start_ms, request_ids)
        return {one: not str(row.get("storage_location")).startswith("not_stored") for one, row in rows}

    def shown(self, url: str, *, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Shown]]:
        """The bodies of these requests, as of `stored`; several where Helicone took one for another.

        Raises ReadBackError.
        """
        found: dict[uuid.UUID, list[Shown]] = {}
        for one, row in self._rows(url, start_ms, request_ids):
            found.setdefault(one, []).append(Shown(row.get("request_body"), row.get("response_body")))
        return found

    def _rows(self, url: str, start_ms: int, request_ids: Sequence[uuid.UUID]) -> Iterator[tuple[uuid.UUID, _Row]]:
        """What is stored of these requests, and nothing else that the answer may hold."""
        wanted = {str(one): one for one in request_ids}
        for row in self._read_page(url, _query(request_ids, start_ms)):
            one = wanted.get(str(row.get("request_id")).lower()) if isinstance(row, dict) else None
            if one is not None:
                yield one, row

    def _read_page(self, url: str, query: _Row) -> list[_Row]:
        try:
            answer = self._transport.post(url, json.dumps(query).encode(), READ_BACK_BYTES_MAX, self._deadline_s)
        except httpx.TransportError as error:
            raise ReadBackError(unreached(error, self._deadline_s).reason) from error
        if len(answer.body) >= READ_BACK_BYTES_MAX:
            raise OverlongError(f"reading back was answered with more than {READ_BACK_BYTES_MAX >> 20} MiB")
        try:
            told = parsed(answer.body) if answer.status in (200, 201) else None
        except TooManyValuesError as error:
            raise OverlongError(f"reading back was answered with {error}") from None
        except AnswerError as error:
            raise ReadBackError(f"reading back was answered with {answer.status}: {error}") from None
        rows = told.get("data") if isinstance(told, dict) else None
        if not isinstance(rows, list):
            said = _describe(answer.body[:ANSWER_BYTES_MAX], self._redacted)
            raise ReadBackError(f"reading back was answered with {answer.status}: {said}")
        return rows


def classify(
    kind: RouteKind,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str,
    now_ms: int,
    redact: Callable[[str], str] = str,
) -> Outcome:
    """What an answer means. `headers` by lower-case name; `body` may be cut.

    The reason holds the status, the kind of body and at most 120 characters of a JSON `error`, redacted.
    """
    said = _describe(body, redact)
    asked_ms = retry_after_ms(headers.get("retry-after", ""), now_ms)
    meaning: tuple[Kind, str]
    if status == 200:  # noqa: PLR2004 - HTTP's own numbers read better than names here
        meaning = _worker_200(headers, body, request_id, said) if kind == "worker" else _jawn_200(body, said)
    elif status in _WAIT or (status == _UNAVAILABLE and asked_ms is not None):
        meaning = ("wait", said)
    elif status >= 500:  # noqa: PLR2004
        meaning = ("permanent" if kind == "jawn" and _is_the_body_at_fault(body) else "retry", said)
    elif status in _PERMANENT and not (kind == "jawn" and body.strip() == b"Invalid token."):
        meaning = ("permanent", said)
    elif _names_a_connection_error(body):
        # jawn, while its database is down: the key may be as good as ever.
        meaning = ("wait", said)
    else:
        meaning = ("refused", said)
    return Outcome(
        kind=meaning[0],
        reason=f"{status}: {meaning[1]}"[:REASON_CHARS_MAX],
        status=status,
        retry_after_ms=asked_ms,
        server_ms=date_ms(headers.get("date", "")),
    )


def _worker_200(headers: Mapping[str, str], body: bytes, request_id: str, said: str) -> tuple[Kind, str]:
    if body.strip() == b"ok":
        echoed = headers.get("helicone-id")
        if echoed is None:
            return "refused", "ok, but without helicone-id: this is not Helicone's worker"
        if echoed.lower() != request_id.lower():
            # Sent again it would be stored once more, under yet another id.
            return "permanent", "Helicone replaced our request id, so it is malformed; please report this"
        return "accepted", "ok"
    error = _fields(body).get("error")
    if not isinstance(error, str):
        return "refused", f"not an answer of Helicone's worker ({said})"
    if _names_a_connection_error(body):
        return "wait", said
    # An unknown key is "Auth failed! …"; every other error is an exception behind the worker.
    return ("refused" if "auth" in error.lower() else "retry"), said


def _jawn_200(body: bytes, said: str) -> tuple[Kind, str]:
    if not body:
        return "accepted", "stored, unverified"
    return "refused", f"not an answer of Helicone's API server ({said})"


def _is_the_body_at_fault(body: bytes) -> bool:
    """jawn answers 500, not 4xx, when its parser stumbles over a body that is too large or malformed."""
    texts = [text for text in _fields(body).values() if isinstance(text, str)]
    return any("request entity too large" in text or "Unexpected end of JSON" in text for text in texts)


def _names_a_connection_error(body: bytes) -> bool:
    """Whether what stands behind Helicone's server could not be asked, whatever the status says."""
    error = _fields(body).get("error")
    return _CONNECTION_ERROR.search(error if isinstance(error, str) else json.dumps(error)) is not None


def _fields(body: bytes) -> _Row:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _describe(body: bytes, redact: Callable[[str], str]) -> str:
    """The kind of body, and what a JSON `error` says: nothing else of an answer is worth the risk of keeping it."""
    start = body.lstrip()[:1]
    if not start:
        return "empty body"
    if start == b"<":
        return "HTML"
    error = _fields(body).get("error")
    if isinstance(error, dict):
        error = error.get("message")
    if isinstance(error, str):
        # Redacted before it is cut: half a secret is none that a rule would know.
        shown = "".join(char if char.isprintable() else " " for char in redact(error.replace("\0", "")))
        return "error " + shown[:ERROR_CHARS_MAX]
    return "JSON" if start in b"{[" else "text"


def _query(request_ids: Sequence[uuid.UUID], start_ms: int) -> _Row:
    """These requests, of those that start at `start_ms` or later.

    Without a bound in time ClickHouse would look through everything that the organisation has.
    """
    since = datetime.fromtimestamp(max(0, start_ms - SINCE_MARGIN_MS) / 1000, UTC).isoformat()
    return {
        "filter": {
            "left": {"request_response_rmt": {"request_created_at": {"gt": since}}},
            "operator": "and",
            "right": _one_of(request_ids),
        },
        "offset": 0,
        "limit": READ_BACK_PAGE,
        "sort": {"created_at": "asc"},
        "isCached": False,
    }


def _one_of(request_ids: Sequence[uuid.UUID]) -> _Row:
    """As a balanced tree: Helicone knows no list of values, and walks the tree recursively."""
    if len(request_ids) == 1:
        return {"request_response_rmt": {"request_id": {"equals": str(request_ids[0])}}}
    middle = len(request_ids) // 2
    return {"left": _one_of(request_ids[:middle]), "operator": "or", "right": _one_of(request_ids[middle:])}

"""Client of OTLP destinations: posts a turn's spans, finds and deletes traces where a preset says how.

    bytes ─ gzip ─ Client.post ─▶ status, headers, at most 64 KiB ─ answers.classify ─▶ Outcome

Phoenix's 200 is no proof: it keeps spans in memory until they are stored, and drops those that its database does not
take. So traces are read back: whole ones, whose root says how many spans there are.
"""

from __future__ import annotations

import gzip
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from app.exporters.answer import AnswerError, TooManyValuesError, parsed
from app.exporters.client import NO_HEADERS, ClientError, OverlongError, ReadBackError
from app.exporters.otlp.answers import classify, described
from app.exporters.otlp.spans import SPAN_COUNT
from app.exporters.otlp.traits import Preset
from app.exporters.outcome import Outcome
from app.exporters.transport import Reply, Transport, trust, unreached
from app.privacy.excerpt import excerpt, repeats

ANSWER_BYTES_MAX = 64 * 1024
READ_BACK_BYTES_MAX = 40 * 1024 * 1024
PAGES = (200, 20, 2)
"""Spans of one page; fewer where more are an answer that is too long."""
DEFAULT_EXPERIMENT = "0"
"""Of MLflow, which takes nothing without a number."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[ -~]*[!-~]")
_OURS = frozenset({"content-type", "content-encoding", "content-length", "transfer-encoding", "host", "connection"})
_SECRET_CHARACTERS_MIN = 8
"""Of a header's value, or a word of it: what is shorter is no secret, and stands in every text by chance."""
_NOT_FOUND = 404
# Exactly so: Phoenix takes it with no `charset` behind it.
_BODY_HEADERS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
_JSON_HEADERS = {"Content-Type": "application/json"}


class Client:
    """Connections to a destination under its own headers, shared by the worker's threads.

    Proxies, certificates and redirects as Helicone's client. Raises ClientError, which names no header's value.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        preset: Preset,
        project: str = "",
        ca_file: Path | None = None,
        deadline_s: float = 30.0,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        """`project`: as of `traits`. `redact`: what every kept answer goes through; without it none is kept."""
        self._preset = preset
        self._project = project
        self._deadline_s = deadline_s
        self._redact = redact
        self._secrets = _secrets(headers)
        named = {**_of_preset(preset, project), **{name.lower(): value for name, value in headers.items()}}
        _check(named)
        self._transport = Transport(trust(ca_file), {"user-agent": "opencode-helicone", **named})

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
        """Send one record's bytes, compressed, within the deadline. A Retry-After date counts from `now_ms`."""
        del request_id
        allowed_s = self._deadline_s if deadline_s is None else min(deadline_s, self._deadline_s)
        packed = gzip.compress(body, compresslevel=6, mtime=0)
        try:
            answer = self._transport.send(
                "POST", url, {**_BODY_HEADERS, **headers}, packed, ANSWER_BYTES_MAX, allowed_s
            )
        except httpx.TransportError as error:
            return unreached(error, allowed_s)
        return self._classified(answer, body, now_ms)

    def _classified(self, answer: Reply, sent: bytes, now_ms: int) -> Outcome:
        outcome = classify(self._preset, answer.status, answer.headers, answer.body, now_ms, self._redacted)
        if outcome.remark and repeats(outcome.remark, sent):
            outcome = replace(
                outcome, remark="some spans rejected; the answer's text repeats the record and is withheld"
            )
        if outcome.kind == "accepted":
            return outcome
        reason = outcome.reason
        if repeats(reason, sent):
            reason = f"{answer.status}: the answer's text repeats the record and is withheld"
        kept = "" if self._redact is None else excerpt(answer.body, sent, self._redacted)
        return replace(outcome, reason=reason, answer=kept)

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[header]")
        return text if self._redact is None else self._redact(text)

    # --- what is there -----------------------------------------------------------------------------------------------

    def stored(self, url: str, *, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Which of these traces are stored, with all of their spans. Raises ReadBackError."""
        del start_ms
        if self._preset == "mlflow":
            return {one: True for one in request_ids if self._has_trace(f"{url}/tr-{one.hex}")}
        wanted = {one.hex: one for one in request_ids}
        spans: dict[str, set[str]] = {trace: set() for trace in wanted}
        expected: dict[str, int] = {}
        try:
            for span in self._spans(url, list(wanted)):
                trace, count = span["context"]["trace_id"], span["attributes"].get(SPAN_COUNT)
                if trace in spans:
                    spans[trace].add(span["context"]["span_id"])
                if isinstance(count, int):
                    expected[trace] = count
        except (KeyError, TypeError, AttributeError):
            raise ReadBackError("reading back was answered without spans") from None
        return {one: True for trace, one in wanted.items() if len(spans[trace]) >= expected.get(trace, 1 << 63)}

    def _has_trace(self, url: str) -> bool:
        """MLflow stores all spans of a POST before it answers, and the root's is the last."""
        answer = self._asked("GET", url)
        if answer.status == _NOT_FOUND and b"RESOURCE_DOES_NOT_EXIST" in answer.body:
            return False
        told = self._read(answer)
        try:
            return bool(told["trace"]["trace_info"]["state"] in {"OK", "ERROR"})
        except (KeyError, TypeError):
            raise ReadBackError("reading back was answered without a trace's state") from None

    def _spans(self, url: str, traces: Sequence[str]) -> Iterator[Any]:
        """Phoenix's spans of these traces, page by page."""
        pages = list(PAGES)
        cursor: str | None = None
        while True:
            query = [("limit", pages[0]), *(("trace_id", trace) for trace in traces)]
            query += [] if cursor is None else [("cursor", cursor)]
            try:
                answer = self._asked("GET", f"{url}?{urlencode(query)}")
                if answer.status == _NOT_FOUND and answer.body.startswith(b"Project with name"):
                    return  # it is made by the first span
                told = self._read(answer)
            except OverlongError:
                pages = pages[1:]
                if not pages:
                    raise
                continue
            yield from told["data"]
            cursor = told["next_cursor"]
            if cursor is None:
                return

    def _asked(self, method: str, url: str, body: bytes = b"") -> Reply:
        try:
            headers = _JSON_HEADERS if body else {}
            return self._transport.send(method, url, headers, body, READ_BACK_BYTES_MAX, self._deadline_s)
        except httpx.TransportError as error:
            raise ReadBackError(unreached(error, self._deadline_s).reason) from error

    def _read(self, answer: Reply) -> Any:
        if len(answer.body) >= READ_BACK_BYTES_MAX:
            raise OverlongError(f"reading back was answered with more than {READ_BACK_BYTES_MAX >> 20} MiB")
        try:
            told = parsed(answer.body) if answer.status == 200 else None  # noqa: PLR2004
        except TooManyValuesError as error:
            raise OverlongError(f"reading back was answered with {error}") from None
        except AnswerError as error:
            raise ReadBackError(f"reading back was answered with {answer.status}: {error}") from None
        if not isinstance(told, dict):
            said = described(answer.body[:ANSWER_BYTES_MAX], self._redacted)
            raise ReadBackError(f"reading back was answered with {answer.status}: {said}")
        return told

    def delete(self, url: str, request_ids: Sequence[uuid.UUID], now_ms: int) -> Outcome:
        """Delete these traces; accepted: none of them is there any more."""
        outcome = Outcome("accepted", "nothing to delete")
        for method, target, body in self._deletions(url, request_ids):
            try:
                headers = _JSON_HEADERS if body else {}
                answer = self._transport.send(method, target, headers, body, ANSWER_BYTES_MAX, self._deadline_s)
            except httpx.TransportError as error:
                return unreached(error, self._deadline_s)
            outcome = self._deleted(answer, now_ms)
            if outcome.kind != "accepted":
                return outcome
        return outcome

    def _deletions(self, url: str, request_ids: Sequence[uuid.UUID]) -> Iterator[tuple[str, str, bytes]]:
        if self._preset == "mlflow":
            told = {
                "experiment_id": self._project or DEFAULT_EXPERIMENT,
                "request_ids": [f"tr-{one.hex}" for one in request_ids],
            }
            yield "POST", url, json.dumps(told).encode()
        else:
            yield from (("DELETE", f"{url}/{one.hex}", b"") for one in request_ids)

    def _deleted(self, answer: Reply, now_ms: int) -> Outcome:
        is_phoenix = self._preset == "phoenix"
        if answer.status == (204 if is_phoenix else 200) and (is_phoenix or b"traces_deleted" in answer.body):
            return Outcome("accepted", f"{answer.status}: deleted", answer.status)
        if is_phoenix and answer.status == _NOT_FOUND and answer.body.startswith(b"Trace with"):
            return Outcome("accepted", f"{answer.status}: not there", answer.status)
        outcome = self._classified(answer, b"", now_ms)
        if outcome.kind == "accepted":
            return Outcome("refused", f"{answer.status}: not an answer to a deletion", answer.status)
        return outcome


def _of_preset(preset: Preset, project: str) -> dict[str, str]:
    if preset == "phoenix":
        return {"x-project-name": project} if project else {}
    return {"x-mlflow-experiment-id": project or DEFAULT_EXPERIMENT} if preset == "mlflow" else {}


def _check(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ClientError("a header's name holds a character that cannot stand in one")
        if name in _OURS:
            raise ClientError(f"the header {name} is set by the program itself")
        if not _VALUE.fullmatch(value):
            raise ClientError(f"the header {name} is empty or holds a character that cannot stand in an HTTP header")


def _secrets(headers: Mapping[str, str]) -> list[str]:
    """The longest first: one may be a part of another."""
    found = {part for value in headers.values() for part in (value, *value.split())}
    return sorted((part for part in found if len(part) >= _SECRET_CHARACTERS_MIN), key=len, reverse=True)

"""Send test: posts one tiny log and looks for it at Helicone, because a 200 does not say that it was stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from app.delivery.access import access
from app.delivery.intake import Intake, asked, told
from app.exporters.client import NO_HEADERS, Client, ClientError, ReadBackError
from app.exporters.connect import connect
from app.exporters.encoding import encoder_of
from app.exporters.kinds import traits_of
from app.exporters.outcome import Outcome
from app.operations.finding import Finding
from app.operations.network_check import fault_of
from app.runtime import clock
from app.settings import heard
from app.settings.intake import MODE_HEADER
from app.settings.model import Settings

LOOK_S = 1.0
CLOCK_S_MAX = 60
"""Clocks differ by less; a `Date` has whole seconds."""
NOT_FOUND = 404
CHECK = "check the key and the endpoint"


def send(settings: Settings, now_ms: int, timeout_s: float) -> Iterator[Finding]:
    """Findings as they come."""
    if not settings.credential:
        yield Finding("send", "problem", "not sent: no HELICONE_API_KEY is set", "export it", "key-missing")
        return
    key, traits = access(settings).key, traits_of(settings.kind, settings.preset, settings.project)
    request_id = uuid.uuid4()
    try:
        made = connect(access(settings), settings.ca_file)
    except ClientError as error:
        name = "certificates-unusable" if "SSL_CERT" in str(error) else "not-sent"
        yield Finding("send", "problem", f"not sent: {error}", "correct it", name)
        return
    with closing(made) as client:
        body = encoder_of(settings.kind).trial(request_id, now_ms)
        # It holds nothing of a session, so every intake takes it.
        headers = NO_HEADERS if settings.heard is None else {MODE_HEADER: "metadata_only"}
        url, outcome = _post(client, traits.routes(settings.endpoint), body, request_id, now_ms, headers)
        if outcome.kind != "accepted":
            name = fault_of(outcome.reason, "not-sent")
            yield Finding("send", "problem", f"{url} did not take it: {outcome.reason}", CHECK, name)
            return
        yield Finding("send", "ok", f"{url} took it")
        yield from _clocks(outcome)
        if settings.heard is not None:
            with closing(Intake(settings)) as intake:
                yield _policy(settings, intake, now_ms)
                yield from _look_at_centre(intake, request_id, timeout_s)
            return
        read_back = traits.read_back("on", settings.endpoint, key, settings.readback_url)
        yield from _look(client, read_back.url, request_id, now_ms, timeout_s, traits.NOT_STORED_CAUSES)


def _clocks(outcome: Outcome) -> Iterator[Finding]:
    if outcome.server_ms is None:
        return
    ahead_s = (clock.now_ms() - outcome.server_ms) // 1000
    if abs(ahead_s) > CLOCK_S_MAX:
        way = "ahead of" if ahead_s > 0 else "behind"
        found = f"this machine's clock is {abs(ahead_s)} s {way} that of the server"
        yield Finding("clock", "warning", found, "set this machine's clock", "clock-skewed")


def _post(
    client: Client,
    found: Sequence[str],
    body: bytes,
    request_id: uuid.UUID,
    now_ms: int,
    headers: Mapping[str, str],
) -> tuple[str, Outcome]:
    """To the first route that is there."""
    for url in found[:-1]:
        outcome = client.post(url, body, str(request_id), now_ms, headers=headers)
        if outcome.status != NOT_FOUND:
            return url, outcome
    return found[-1], client.post(found[-1], body, str(request_id), now_ms, headers=headers)


def _policy(settings: Settings, intake: Intake, now_ms: int) -> Finding:
    """What it says may leave; kept for whoever comes next, where there is a spool."""
    path = heard.place(settings)
    known = asked(intake, heard.kept(path), now_ms)
    if path.parent.is_dir():
        heard.keep(path, known)
    if known.failure:
        return Finding("intake", "problem", f"it does not say what may leave: {known.failure}", CHECK, "intake-silent")
    return Finding("intake", "ok", told(known))


def _look_at_centre(intake: Intake, request_id: uuid.UUID, timeout_s: float) -> Iterator[Finding]:
    """What the centre says became of it. That it has it is enough for this machine."""
    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            said = intake.states([request_id]).get(request_id)
        except ReadBackError as error:
            yield Finding("read back", "problem", f"the intake: {error}", CHECK, "read-back-blind")
            return
        if said is None or said.state in {"dead", "dropped"}:
            why = "it does not know it" if said is None else f"it is {said.state} there: {said.reason}"
            todo = "whoever runs the centre sees to it"
            yield Finding("read back", "problem", f"the centre took it, and {why}", todo, "never-stored")
            return
        if said.state != "pending":
            yield Finding("read back", "ok", "the centre has delivered it to Helicone")
            return
        if time.monotonic() >= ends_s:
            break
        time.sleep(LOOK_S)
    why = f": {said.reason}" if said.reason else ""
    yield Finding("read back", "ok", f"the centre has it, and has not delivered it within {timeout_s:g} s{why}")


def _look(
    client: Client, url: str | None, request_id: uuid.UUID, now_ms: int, timeout_s: float, causes: Sequence[str]
) -> Iterator[Finding]:
    if url is None:
        found = "nothing says where its API server is: not read back"
        yield Finding("read back", "warning", found, "look at Helicone", "read-back-blind")
        return
    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            stored = client.stored(url, start_ms=now_ms, request_ids=[request_id])
        except ReadBackError as error:
            yield Finding("read back", "problem", f"{url}: {error}", CHECK, "read-back-blind")
            return
        if stored:
            yield Finding("read back", "ok", "it is stored")
            return
        if time.monotonic() >= ends_s:
            break
        time.sleep(LOOK_S)
    found = f"it was taken, but did not appear within {timeout_s:g} s"
    yield Finding("read back", "problem", found, "one of these:", "never-stored")
    for cause in causes:
        yield Finding("known cause", "warning", cause, name="never-stored")

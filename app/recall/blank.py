"""What is at Helicone of a turn, as footprints tell it, and records that leave nothing of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from app.capture.enqueue import body_of
from app.exporters.helicone.records import Record, blank, kind_of
from app.ledger.history import Exported
from app.ledger.job import Body, Frozen
from app.ledger.record_identity import Print


def sent(versions: Sequence[Exported]) -> Iterator[Print]:
    """Each row that may be at Helicone once, the newest first."""
    seen = set()
    for version in reversed(versions):
        for one in version.prints if version.was_attempted else ():
            place = (one.request_id, row(one.frozen))
            if place not in seen:
                seen.add(place)
                yield one


def blank_key(session: str, turn: str) -> str:
    return hashlib.sha256(f"blank\n{session}\n{turn}".encode("utf-8", "surrogatepass")).hexdigest()


def is_unprinted(versions: Sequence[Exported], blanked: str) -> bool:
    """Whether something was sent of which no ids are kept.

    `blanked` is the turn's `blank_key`: what was blanked before has none that the others lack.
    """
    return any(one.was_attempted and not one.prints and one.key != blanked for one in versions)


def row(frozen: Frozen) -> tuple[str, str, int]:
    """What tells rows of one id apart: a record with another of these does not replace it."""
    return frozen.provider, frozen.model, frozen.start_ms


def blank_body(one: Print, session: str, user_id: str) -> Body:
    frozen = one.frozen
    record = Record(
        request_id=str(one.request_id),
        kind=kind_of(frozen.model),
        path=frozen.path,
        provider=frozen.provider,
        model=frozen.model,
        user_id=user_id,
        start_ms=frozen.start_ms,
        session_name=frozen.session_name,
        body=b"",
    )
    return body_of(blank(record, session))

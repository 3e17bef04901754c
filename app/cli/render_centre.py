"""Renders for people what the centre has of this machine's logs."""

from __future__ import annotations

from collections.abc import Iterator

from app.cli.layout import at, local
from app.operations.centre import Centre
from app.runtime.terminal import counted


def centre_line(found: Centre, now_ms: int) -> str:
    """What became of the logs there, and whether it says so still."""
    if found.heard_ms is None:
        asked = f"; asked {at(found.asked_ms, now_ms)}" if found.asked_ms is not None else ""
        return f"at the centre: it has said nothing yet{asked}{_failure(found)}"
    told = f"{found.waiting} {'waits' if found.waiting == 1 else 'wait'}, {found.dead} dead"
    return f"at the centre (as of {at(found.heard_ms, now_ms)}): {told}{_failure(found)}"


def _failure(found: Centre) -> str:
    return f"; the last question failed: {found.failure}" if found.failure else ""


def dead_lines(found: Centre, now_ms: int) -> Iterator[str]:
    """The logs that the centre gave up."""
    if not found.dead or found.heard_ms is None:
        return
    dead = counted(found.dead, "log")
    yield f"at the centre, as of {at(found.heard_ms, now_ms)}: {dead} dead; who runs it tries them again"
    for one in found.dead_records:
        yield f"  {local(one.finished_ms)}  {one.session} {one.request_id}: {one.reason}"
    if found.dead > len(found.dead_records):
        yield f"  and {found.dead - len(found.dead_records)} more"

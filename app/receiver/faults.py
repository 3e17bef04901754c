"""Faults: a script of what goes wrong at the receiver; each request takes the next fault that concerns it.

Requests are POSTs to a log route, and queries that read back; a fault concerns queries when its route is "read".
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeAlias

from app.errors import AppError
from app.runtime.url import RouteKind

Asked: TypeAlias = RouteKind | Literal["read"]
"""Which server's log route, or reading back."""


class FaultError(AppError):
    """A script that cannot be read. Names the field."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a request instead of, or besides, storing and answering it. The default: nothing."""

    status: int | None = None
    """Answer with it and store nothing."""
    body: str = ""
    """Of that answer."""
    headers: tuple[tuple[str, str], ...] = ()
    """Of that answer."""
    delay_ms: int = 0
    """Before anything else."""
    times: int = 1
    """For so many requests; then the next fault's turn comes."""
    reset: bool = False
    """Store nothing, and break the connection off in the middle of the answer."""
    drop_after_store: bool = False
    """Store, then break off: the sender cannot know."""
    unstored: bool = False
    """Answer as if it were stored, and store nothing."""
    over_quota: bool = False
    """Store its numbers without its bodies, as Helicone does beyond its free tier."""
    blind: bool = False
    """Answer a query as if nothing were stored, as Helicone does while its ClickHouse is down."""
    cut_since: bool = False
    """Answer a query as ClickHouse 26.9 does behind Helicone: the time it asks since is cut to whole seconds, and rows
    that start in that second are left out."""
    route: Asked | None = None
    """Only POSTs to this server's log routes, or only queries; others pass by. None: POSTs to any log route."""


class Script:
    """Faults in the order in which they happen; each is used up."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = deque(faults)

    def take(self, kind: Asked) -> Fault:
        for position, fault in enumerate(self._faults):
            if fault.route == kind or (fault.route is None and kind != "read"):
                if fault.times > 1:
                    self._faults[position] = replace(fault, times=fault.times - 1)
                else:
                    del self._faults[position]
                return fault
        return Fault()


def parse(value: object) -> tuple[Fault, ...]:
    """A script as JSON has it: a list of objects with fields of `Fault`, a `body` of any kind. Raises FaultError."""
    if not isinstance(value, list):
        raise FaultError("a script is a list of faults")
    return tuple(_fault(entry) for entry in value)


def read(path: Path) -> tuple[Fault, ...]:
    """A script from a JSON file. Raises FaultError."""
    try:
        return parse(json.loads(path.read_bytes()))
    except (OSError, ValueError, FaultError) as error:
        raise FaultError(f"{path} is no script of faults: {error}") from error


def _fault(entry: object) -> Fault:
    names = sorted(one.name for one in fields(Fault))
    if not isinstance(entry, dict) or not entry.keys() <= set(names):
        raise FaultError(f"a fault is an object with some of: {', '.join(names)}")
    for name in ("status", "delay_ms", "times"):
        if not isinstance(entry.get(name, 0), int) or entry.get(name, 0) < 0:
            raise FaultError(f"a fault's {name} is a whole number")
    headers, body = entry.get("headers", {}), entry.get("body", "")
    if not isinstance(headers, dict) or entry.get("route") not in (None, "worker", "jawn", "read"):
        raise FaultError('a fault\'s headers are an object, and its route is "worker", "jawn" or "read"')
    pairs = tuple((str(name), str(value)) for name, value in headers.items())
    return Fault(**(entry | {"headers": pairs, "body": body if isinstance(body, str) else json.dumps(body)}))

"""Sender: posts the records of one destination: by the route that answers, and several at a time where that pays."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

from app.database.connection import Database, surviving
from app.delivery.deliver import Answered
from app.exporters.client import NO_HEADERS, Client, Deleting
from app.exporters.outcome import Outcome
from app.exporters.traits import Traits
from app.ledger import destinations, incidents
from app.ledger.destinations import Destination
from app.ledger.job import Body, Claim
from app.runtime import clock

POST_S_MAX = 30.0
"""For one record in all, whichever routes are tried: well within the lease."""
SLOW_S = 0.05
"""Where all of the last ANSWERS took longer, they are waited for several at a time."""
ANSWERS = 8
ANSWERS_LEAST = 3
NOT_FOUND = 404


class Connected(Protocol):
    """The calling thread's own connection to the ledger."""

    @property
    def db(self) -> Database: ...

    def leave(self) -> None:
        """It is needed no more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where records go."""

    destination: Destination
    endpoint: str
    name: str
    """As a person calls it."""
    traits: Traits


class Sender:
    """Shared by a worker's threads."""

    def __init__(
        self,
        ledger: Connected,
        place: Place,
        client: Client,
        headers_of: Callable[[Claim], Mapping[str, str]] = lambda _: NO_HEADERS,
    ) -> None:
        """`headers_of`: what is said beside the records of a job."""
        self._ledger = ledger
        self._place = place
        self._client = client
        self._headers_of = headers_of
        self._routes = place.traits.routes(place.endpoint)
        self._route = place.destination.route
        self.answers_s: deque[float] = deque(maxlen=ANSWERS)
        """How long each of the last ones took."""

    @property
    def make_way(self) -> Callable[[Sequence[uuid.UUID]], Outcome] | None:
        """As of `DeliveryContext`."""
        return self._make_way if self._place.traits.CHANGED == "deleted first" else None

    @property
    def post_changed(self) -> Callable[[Body], Outcome] | None:
        """As of `DeliveryContext`."""
        return self._leave if self._place.traits.CHANGED == "not sent" else None

    def _leave(self, _: Body) -> Outcome:
        """What was accepted stays: nobody here can say whether the destination would show both."""
        self._note("turns that changed after they were delivered, and were not sent again")
        return Outcome("accepted", "not sent: another version was accepted before")

    def _note(self, what: str) -> None:
        with suppress(sqlite3.OperationalError):  # what was answered counts more
            incidents.note(self._ledger.db, f"{self._place.name}: {what}", clock.now_ms())

    def _make_way(self, request_ids: Sequence[uuid.UUID]) -> Outcome:
        client, url = cast("Deleting", self._client), self._place.traits.deletion_url(self._place.endpoint)
        assert url is not None  # noqa: S101 - a destination at which what has changed is deleted first
        return client.delete(url, request_ids, clock.now_ms())

    def post(self, claim: Claim, body: Body) -> Outcome:
        """Try the route that answered last, then the others: the first that knows the path is remembered."""
        if not body.body:
            return self._make_way([body.request_id])  # recalled, where nothing can take its place
        headers = self._headers_of(claim)
        outcome: Outcome | None = None
        began_s = time.monotonic()
        ends_s = began_s + POST_S_MAX
        for url in sorted(self._routes, key=lambda url: url != self._route):
            left_s = ends_s - time.monotonic()
            outcome = self._client.post(url, body.body, str(body.request_id), clock.now_ms(), left_s, headers)
            if outcome.status is not None and outcome.status != NOT_FOUND and url != self._route:
                # The answer counts more than the note: where the ledger is locked, the next answer brings it.
                with suppress(sqlite3.OperationalError):
                    destinations.remember_route(self._ledger.db, self._place.destination.id, url)
                    self._route = url
            if outcome.status != NOT_FOUND:
                break
        assert outcome is not None  # noqa: S101 - there is always a route
        if outcome.kind == "accepted" and outcome.remark:
            self._note(outcome.remark)
        self.answers_s.append(time.monotonic() - began_s)
        return outcome

    def at_once(self) -> int:
        """How many records of a job may be under way: more than one where it is answers that take the time.

        Where this machine is busy, some of the last ones took long as well, but not all.
        """
        last_s = self.answers_s.copy()
        if len(last_s) < ANSWERS_LEAST or min(last_s) < SLOW_S:
            return 1
        db = self._ledger.db
        found = surviving(db, partial(destinations.by_id, db, self._place.destination.id))
        is_careful = found.concurrency is not None
        return 1 if is_careful else self._place.traits.RECORDS_AT_ONCE

    def beside(self, post: Callable[[], Answered]) -> Future[Answered]:
        """Post in a thread of its own, which is no reason for the process to live on."""
        answered: Future[Answered] = Future()

        def run() -> None:
            try:
                try:
                    answer = post()
                finally:
                    self._ledger.leave()
            except BaseException as error:  # noqa: BLE001 - whoever waits for the answer raises it
                answered.set_exception(error)
            else:
                answered.set_result(answer)

        threading.Thread(target=run, name="post", daemon=True).start()
        return answered

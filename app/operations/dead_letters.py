"""Dead letters: chooses and lists them, shows them with what to do, tries them again or purges them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from app.database.connection import Database
from app.errors import AppError
from app.exporters.encoding import legible
from app.ledger import dead_letters, destinations, job
from app.ledger.dead_letters import Attempt, Choice, Group, Letter
from app.ledger.job import LedgerError
from app.queue import Queue
from app.runtime.spool import Spool
from app.settings.model import Settings

KEY_CHARACTERS = 12
"""Of a job's key, as people see and type it."""
LETTERS_MAX = 1_000
"""Of one list; its groups count all."""
WAKES_MAX = 24
"""Enough to wake every thread of a worker; its poller finds the others."""


class DeadLetterError(AppError):
    """What was asked for is not there, or could be several. Names keys only."""


@dataclass(frozen=True, slots=True)
class Listed:
    jobs: int
    groups: tuple[Group, ...]
    letters: tuple[Letter, ...]
    """The latest LETTERS_MAX."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One letter with all there is to know about it."""

    letter: Letter
    endpoint: str
    todo: str
    """What a person can do about it."""
    attempts: tuple[Attempt, ...]
    """The last few."""
    bodies: tuple[object, ...]
    """Each record as JSON: what would leave. Empty unless asked for."""
    problem: str
    """Why the bodies cannot be read."""


def choose(db: Database, prefixes: Sequence[str], destination_id: int | None = None) -> Choice:
    """The dead letters whose keys begin so, of one destination or of all. Raises DeadLetterError."""
    keys = tuple(_dead(db, prefix, destination_id)[0].key for prefix in prefixes)
    return Choice(keys=keys, destination_id=destination_id)


def _dead(db: Database, prefix: str, destination_id: int | None) -> list[Letter]:
    """One key's letters, of which there can be one for each destination."""
    found = dead_letters.letters_of(db, prefix.lower(), "dead", destination_id=destination_id)
    if not found:
        dropped = dead_letters.letters_of(db, prefix.lower(), "dropped", destination_id=destination_id)
        if dead_letters.dead_keys(db, Choice(fingerprint=prefix.lower())):
            raise DeadLetterError(f"{prefix} is an error's, and no key: say --error {prefix}")
        why = f"; {short(dropped[0].key)} was dropped ({dropped[0].reason}), import brings it back" if dropped else ""
        raise DeadLetterError(f"no dead letter's key begins with {prefix}{why}")
    return _only(prefix, found)


def _only(prefix: str, found: list[Letter]) -> list[Letter]:
    keys = sorted({letter.key for letter in found})
    if len(keys) > 1:
        raise DeadLetterError(
            f"{prefix} is the beginning of several keys: {', '.join(short(key, prefix) for key in keys)}"
        )
    return found


def short(key: str, prefix: str = "") -> str:
    """The key as it is shown; longer where it is to be told from others that begin with the prefix."""
    return key[: max(KEY_CHARACTERS, len(prefix) + 4)]


def list_dead(db: Database, choice: Choice, limit: int = LETTERS_MAX) -> Listed:
    letters = dead_letters.dead_letters(db, choice, limit)
    latest = {letter.fingerprint: letter.job_id for letter in reversed(letters)}
    groups = tuple(
        replace(one, answer=_answer(db, latest[one.fingerprint]) if one.fingerprint in latest else "")
        for one in dead_letters.dead_groups(db, choice)
    )
    return Listed(sum(one.jobs for one in groups), groups, tuple(letters))


def _answer(db: Database, job_id: int) -> str:
    """What the last attempt was answered."""
    return next((one.answer for one in reversed(dead_letters.attempts(db, job_id)) if one.answer), "")


def list_dropped(db: sqlite3.Connection, since: int, limit: int = LETTERS_MAX) -> Listed:
    groups = dead_letters.dropped_groups(db, since)
    return Listed(sum(one.jobs for one in groups), tuple(groups), tuple(dead_letters.dropped_letters(db, since, limit)))


def open_letters(db: sqlite3.Connection, name: str, *, with_bodies: bool) -> list[Opened]:
    """The dead letters of a session, or else its dropped jobs; or those of the key that begins so.

    A key has one letter for each destination. Raises DeadLetterError.
    """
    of_session = dead_letters.letters_of_session(db, name, "dead") or dead_letters.letters_of_session(
        db, name, "dropped"
    )
    return [_opened(db, letter, with_bodies=with_bodies) for letter in of_session or _of_key(db, name)]


def _of_key(db: sqlite3.Connection, prefix: str) -> list[Letter]:
    key = prefix.lower()
    found = dead_letters.letters_of(db, key, "dead") or dead_letters.letters_of(db, key, "dropped")
    if not found:
        raise DeadLetterError(
            f"no dead or dropped job has a key that begins with {prefix}, or is of a session of that name"
        )
    return _only(prefix, found)


def _opened(db: sqlite3.Connection, letter: Letter, *, with_bodies: bool) -> Opened:
    bodies: tuple[object, ...] = ()
    problem = ""
    if with_bodies and letter.state == "dead" and not letter.body_bytes:
        problem = "its text was given up for want of room (maxSpoolSize); OpenCode's store has it, for a retry"
    elif with_bodies:
        try:
            kind = destinations.by_id(db, letter.destination_id).kind
            bodies = tuple(legible(kind, body.body) for body in job.bodies(db, letter.job_id, letter.key))
        except LedgerError as error:
            problem = str(error)
    return Opened(
        letter=letter,
        endpoint=destinations.by_id(db, letter.destination_id).endpoint,
        todo=what_to_do(letter),
        attempts=tuple(dead_letters.attempts(db, letter.job_id)),
        bodies=bodies,
        problem=problem,
    )


_DROPPED_TODO = {
    "age": "it waited longer than maxSpoolAge; import of its session queues it again",
    "size": "there was no room for it (maxSpoolSize), or none for its text, and that was gone from OpenCode's store"
    " when it was to be sent; import of its session queues it again, if there still is a file of it",
    "deleted": "its session was deleted in OpenCode; nothing is to be done",
    "off": "it was captured while export was off, without content; it is not sent later",
    "policy": "it was made under a looser policy than the present one; OpenCode's next look at its session"
    " captures it again",
    "purged": "somebody purged it; import of its session queues it again",
}
_DEAD_TODO = (
    ("worker died", "a worker's process ended each time it was tried; see logs/worker.log before you retry it"),
    ("damaged|checksum", "its bodies are damaged on this disk: purge it, then import its session again"),
    ("not stored", "see the causes that doctor --send names, mend them at Helicone, then retry it"),
    (r"after [0-9]+ retries", "Helicone failed on it while others passed; see Helicone's own log, then retry it"),
    (r"^4[0-9]{2}: ", "Helicone refuses these bytes; retry it when Helicone has changed, or purge it"),
)


def what_to_do(letter: Letter) -> str:
    """One sentence for a person."""
    if letter.state == "dropped":
        return _DROPPED_TODO.get(letter.reason, "")
    return next((todo for pattern, todo in _DEAD_TODO if re.search(pattern, letter.reason)), "retry it, or purge it")


def retry(db: sqlite3.Connection, settings: Settings, choice: Choice, now_ms: int) -> int:
    """dead -> pending, all that are chosen, and wake whoever delivers them. The number of jobs."""
    retried = reopen(db, choice, now_ms)
    for destination_id in {destination_id for destination_id, _ in retried}:
        with closing(Queue(Spool(settings.spool_directory).path, destination_id)) as queue:
            for key in [key for one, key in retried if one == destination_id][:WAKES_MAX]:
                queue.wake(key)
    return len(retried)


def reopen(db: Database, choice: Choice, now_ms: int) -> list[tuple[int, str]]:
    """dead -> pending, all that are chosen; (destination, key) of each."""
    return [one for batch in _batches(db, choice) for one in dead_letters.retry_dead(db, batch, now_ms)]


def purge(db: Database, choice: Choice, now_ms: int) -> int:
    """dead -> dropped (purged), all that are chosen. The number of jobs."""
    return sum(dead_letters.purge_dead(db, batch, now_ms) for batch in _batches(db, choice))


def _batches(db: Database, choice: Choice) -> Iterator[Choice]:
    """A retried one may be dead again at once, so who is meant is settled first."""
    keys = dead_letters.dead_keys(db, choice)
    for at in range(0, len(keys), job.BATCH):
        yield replace(choice, keys=tuple(keys[at : at + job.BATCH]))

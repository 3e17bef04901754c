"""Turn status: decides what became of each turn that OpenCode has, by what the ledger knows of it.

A turn is unexplained when OpenCode has it, nobody kept it from being exported, and the ledger does not have it, or has
an older version of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from app.ledger import job
from app.ledger.history import Exported
from app.privacy.terms import Capture
from app.transcript.model import Transcript, Unreadable, key, session_digest

State: TypeAlias = Literal[
    "delivered",
    "recalled",
    "waiting",
    "dead",
    "dropped",
    "in_progress",
    "unread",
    "undone",
    "switched_off",
    "held",
    "elsewhere",
    "earlier",
    "inside",
    "other_destination",
    "changed",
    "never_seen",
]
"""delivered          Helicone has accepted its current version
recalled           it was written over at Helicone, because somebody asked for that; or a subagent inside it was
waiting, dead, dropped   as the ledger says of its job
in_progress        a live OpenCode has its session open, and brings it, or its newer version; or it is unfinished, and
                   may have one without a hook
unread             the plugin has told of it; the next hook of its folder reads it, or `flush`
undone             it was taken back with `/undo` before it was read
switched_off       its folder's settings keep it from being exported
held               its folder's files cannot be used, and may have been meant to withhold something
elsewhere          its folder was never captured by a hook
earlier            OpenCode wrote it before capture of its folder began, or while it was off
inside             its session is exported with the one that called it
other_destination  it was exported to another endpoint, or under another key
changed            OpenCode has a newer version than the ledger, and nobody is about to bring it
never_seen         none of these: OpenCode has it, and the ledger does not
"""
UNEXPLAINED: tuple[State, ...] = ("changed", "never_seen")


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A turn as OpenCode has it, or by the name SESSION_RECORD what a session says about itself."""

    name: str
    digest: str
    last_event_ms: int
    is_final: bool
    is_undone: bool = False


def stored_turns(transcript: Transcript) -> Iterator[StoredTurn]:
    """Turns of a transcript, without text. A session without turns says nothing about itself yet."""
    session = transcript.session
    if transcript.turns:
        yield StoredTurn(job.SESSION_RECORD, session_digest(session), session.updated_ms, is_final=True)
    for turn in transcript.turns:
        yield StoredTurn(turn.id, turn.digest, turn.last_event_ms, turn.final, turn.is_undone)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What else decides about the turns of one session."""

    capture: Capture | None
    """How its folder would be captured today; None where it would not."""
    user_id: str
    is_live: bool
    """Whether an OpenCode that is alive has it open."""
    is_inside: bool
    """Whether the ledger knows it as the subagent of another one."""
    captured_since_ms: int | None
    """When capture of its folder began; None where it never did."""
    elsewhere: frozenset[str]
    """The turns that the ledger has for other destinations."""
    sealed: frozenset[str] = frozenset()
    """The turns that hold a subagent which was recalled: they are not taken."""
    is_unread: bool = False
    """Whether a notice of it is open."""
    is_held: bool = False
    """Whether nothing of its folder is captured because its files cannot be used."""
    is_recent: bool = False
    """Whether OpenCode wrote to it so short a time ago that one without a hook may still be at it."""


def turn_state(turn: StoredTurn, versions: Sequence[Exported], at: Circumstances) -> State:
    """`versions`: those of this turn, in any order."""
    known = current(versions)
    if known is None:
        if turn.name in at.elsewhere:
            return "other_destination"
        if turn.name in at.sealed:
            return "recalled"
        return "undone" if turn.is_undone else _excuse(turn, at) or "never_seen"
    if _is_newer(turn, known, at):
        return "in_progress" if at.is_live else (_excuse(turn, at) or "changed")
    return state_in_ledger(known)


def state_in_ledger(version: Exported) -> State:
    """What the ledger says of a current version."""
    match version.state:
        case "pending":
            return "waiting"
        case "dead":
            return "dead"
        case "dropped":
            return "dropped"
        case _:
            return "recalled" if version.is_sealed or version.is_recall else "delivered"


def current(versions: Sequence[Exported]) -> Exported | None:
    return next((one for one in versions if one.state != "superseded"), None)


def _is_newer(turn: StoredTurn, known: Exported, at: Circumstances) -> bool:
    """Whether the ledger would take what OpenCode has as a newer version."""
    if known.is_sealed or known.drop_reason in {"off", "deleted"}:
        return False
    if at.capture is not None and known.policy == at.capture.policy.facts(at.user_id):
        same = key(turn.digest, at.capture.policy.digest(at.user_id)) == known.key
        return not same and turn.last_event_ms >= known.last_event_ms
    # Under another policy the keys cannot be compared; and the time of a session moves on without its record.
    return turn.name != job.SESSION_RECORD and turn.last_event_ms > known.last_event_ms


def _excuse(turn: StoredTurn, at: Circumstances) -> State | None:
    """Why nobody is to blame that the ledger does not have it."""
    if at.is_inside:
        return "inside"
    if at.capture is None or at.capture.policy.mode == "off":
        return "held" if at.is_held else "switched_off"
    if at.captured_since_ms is None:
        return "elsewhere"
    if turn.last_event_ms < at.captured_since_ms and not at.is_unread:
        return "earlier"
    if (at.is_live or at.is_recent) and not turn.is_final:
        return "in_progress"
    return "unread" if at.is_unread else None


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """Status of one root session, with its subagents inside its turns."""

    session: str
    project: str
    """The name of its folder; '' where OpenCode does not have it any more."""
    changed_ms: int
    is_deleted: bool
    """Not in OpenCode's store: its turns are those that the ledger knows."""
    failure: str
    """Why the session cannot be read; '' otherwise."""
    turns: int = 0
    states: Mapping[State, int] = field(default_factory=dict)
    """Turns by state; together they are `turns`."""
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)
    confirmed: int = 0
    """Of the delivered ones: read back."""
    body_not_stored: int = 0
    """Of the delivered ones: Helicone kept their numbers only."""
    held: int = 0
    """Of the waiting ones: the settings in force keep them from being sent."""
    without_bodies: int = 0
    """Of the waiting ones: made again from OpenCode's store as they are sent."""
    superseded: int = 0
    """Versions that a newer one has replaced."""
    gone: int = 0
    """Turns that the ledger knows and that OpenCode no longer has."""
    record: State | None = None
    """Of the session's own record; None where there is none to be."""
    unexplained: tuple[str, ...] = ()
    """Ids of turns; SESSION_RECORD for the session's own record."""
    copied: int = 0
    """Turns that a fork has brought along from a session whose own are known; they are not among `turns`."""
    unreadable: int = 0
    """Turns that cannot be read, and are not exported; nor are these."""
    odd: int = 0
    """Values in its turns that were rounded, cut or left out."""

    @property
    def is_fine(self) -> bool:
        return not self.unexplained and not self.failure and not self.unreadable


def session_status(
    session: SessionStatus,
    turns: Sequence[StoredTurn],
    known: Sequence[Exported],
    at: Circumstances,
    unreadable: Sequence[Unreadable] = (),
) -> SessionStatus:
    """The verdict on a session of which `session` says the first fields."""
    versions = by_turn(known)
    states = {turn.name: turn_state(turn, versions.get(turn.name, ()), at) for turn in turns}
    # What cannot be read any more, and was exported before, is what the ledger says.
    for lost in unreadable:
        before = None if lost.turn is None else current(versions.get(lost.turn, ()))
        if before is not None:
            states[before.turn] = state_in_ledger(before)
    currents = {name: one for name in states if (one := current(versions.get(name, ()))) is not None}
    found = _status(session, states, currents, known, gone=len(versions.keys() - states.keys()))
    return replace(found, unreadable=len({lost.turn or lost.why for lost in unreadable if lost.turn not in states}))


def deleted_session_status(session: str, known: Sequence[Exported]) -> SessionStatus:
    """Status of a session that only the ledger knows."""
    currents = {name: one for name, versions in by_turn(known).items() if (one := current(versions)) is not None}
    changed_ms = max((one.last_event_ms for one in known), default=0)
    first = SessionStatus(session, "", changed_ms, is_deleted=True, failure="")
    return _status(first, {name: state_in_ledger(one) for name, one in currents.items()}, currents, known, gone=0)


def by_turn(known: Sequence[Exported]) -> Mapping[str, list[Exported]]:
    found: dict[str, list[Exported]] = {}
    for one in known:
        found.setdefault(one.turn, []).append(one)
    return found


def _status(
    session: SessionStatus,
    states: Mapping[str, State],
    currents: Mapping[str, Exported],
    known: Sequence[Exported],
    *,
    gone: int,
) -> SessionStatus:
    of_turns = {name: state for name, state in states.items() if name != job.SESSION_RECORD}
    told = {
        state: [currents.get(name) for name, own in of_turns.items() if own == state]
        for state in set(of_turns.values())
    }
    delivered, waiting, dropped = (
        [one for one in told.get(state, ()) if one is not None] for state in ("delivered", "waiting", "dropped")
    )
    return replace(
        session,
        turns=len(of_turns),
        states={state: len(jobs) for state, jobs in told.items()},
        dropped_by_reason=dict(Counter(one.drop_reason or "" for one in dropped)),
        confirmed=sum(one.confirmed_ms is not None for one in delivered),
        body_not_stored=sum(one.body_not_stored for one in delivered),
        held=sum(one.is_held for one in waiting),
        without_bodies=sum(not one.has_bodies for one in waiting),
        superseded=sum(one.state == "superseded" and one.turn != job.SESSION_RECORD for one in known),
        gone=gone,
        record=states.get(job.SESSION_RECORD),
        unexplained=tuple(name for name, state in states.items() if state in UNEXPLAINED),
    )

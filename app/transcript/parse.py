"""Parses OpenCode's JSON into the values of `transcript`; there is no other way in.

    {"root": "ses_…", "sessions": [
        {"info": {session}, "messages": [{"info": {…}, "parts": [{…}, …]}, …]}, …]}

`sessions` holds the root and its subagents' sessions, each once, in any order, as do `messages` and `parts`. Unknown
keys are ignored. A known key with an odd value costs that value, an unreadable part itself, an unreadable message its
turn; each is told among the faults. Only a session without an id, or without messages, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from app.transcript.fields import Canonical, Place, canonical, joined, place, refuse, sha256, turn_name
from app.transcript.id_times import is_copy, minted_ms
from app.transcript.message import Read, read_message
from app.transcript.model import (
    Assistant,
    Excerpt,
    Json,
    Session,
    Tool,
    Transcript,
    TranscriptError,
    Turn,
    Unreadable,
    User,
    has_ended,
    session_digest,
)

SUBAGENT_DEPTH_MAX = 32
DAY_MS = 86_400_000


def parse(snapshot: Json, excerpt: Excerpt | None = None) -> Transcript:
    """The root session's transcript, its subagents under the calls that started them.

    `excerpt`: only these turns of the root are there. Raises TranscriptError when there is no such session, or it has
    no list of messages.
    """
    top = place(snapshot, "")
    name = top.id("root")
    unclaimed: dict[str, Place] = {}
    for path, item in top.items("sessions"):
        try:
            entry = place(item, path)
            if unclaimed.setdefault(entry.need("info").id("id"), entry) is not entry:
                top.faults.append(f"{path}: the same session twice")
        except TranscriptError as error:
            top.faults.append(str(error))
    root = unclaimed.pop(name, None) or refuse("root", "names none of the sessions")
    root.faults.extend(top.faults)
    return _transcript(root, unclaimed, 0, excerpt)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A message where it stands in its session, not yet read."""

    place: Place
    """An empty one for what is no object."""
    created_ms: int
    """That of the message before it, where it does not say."""
    name: str

    @property
    def age(self) -> tuple[int, str]:
        return self.created_ms, self.name


@dataclass(frozen=True, slots=True)
class _Told:
    """A message of a turn."""

    listed: _Listed
    read: Read
    is_copy: bool | None
    """None when nothing tells."""


def _transcript(entry: Place, unclaimed: dict[str, Place], depth: int, excerpt: Excerpt | None = None) -> Transcript:
    """`unclaimed` loses each subagent's session to the first call that names it, which also rules out cycles."""
    info = entry.need("info")
    listed = _in_order(entry, info.object("time").moment("created") or 0)
    began_ms = min((one.created_ms for one in listed if one.created_ms), default=0)
    session = _session(info, began_ms)

    def child_of(part: Place) -> Transcript | None:
        return _child(part, session, unclaimed, depth)

    turns: dict[str, list[_Told]] = {}
    unreadable: list[Unreadable] = []
    positions = range(len(listed)) if excerpt is None else excerpt.positions
    for index, one in zip(positions, listed, strict=True):
        try:
            read = read_message(one.place, index, one.created_ms, child_of)
        except TranscriptError as error:
            unreadable.append(Unreadable(_turn_of(one), str(error)))
            continue
        value = read.value
        told = _Told(one, read, is_copy(value.id, value.created_ms, session.created_ms))
        turns.setdefault(value.id if isinstance(value, User) else value.parent_id, []).append(told)
    left_out = {one.turn for one in unreadable}
    own = [one for name, told in turns.items() if name not in left_out for one in told if one.is_copy is not True]
    session = replace(session, origin=_origin(own) if excerpt is None else excerpt.origin)
    undone_from = (excerpt and excerpt.undone_from) or _undone_from(info, listed)
    found = [_turn(session, name, told, undone_from) for name, told in turns.items() if name not in left_out]
    return Transcript(
        session,
        # Nobody forks a subagent: what its ids say was copied there belongs to another session.
        tuple(turn for turn in found if depth == 0 or not _is_copied(turns[turn.id])),
        tuple(unreadable),
        tuple(dict.fromkeys(entry.faults)),
    )


def _origin(told: list[_Told]) -> str | None:
    """Where OpenCode worked when it gave the first answer (`root` beside it is the whole work tree's, or `/`)."""
    answers = sorted((one.listed for one in told if isinstance(one.read.value, Assistant)), key=lambda one: one.age)
    for one in answers:
        cwd = one.place.object("info").object("path").fields.get("cwd")
        if isinstance(cwd, str):
            return cwd
    return None


def _in_order(entry: Place, session_ms: int) -> list[_Listed]:
    """By (time.created, id), as OpenCode lists them. What has no time that can be, or no id, stays where it stands."""
    # Its faults are its turn's.
    messages = [Place(path, item if isinstance(item, dict) else {}) for path, item in entry.items("messages")]
    created = [message.object("info").object("time").moment("created") for message in messages]
    found: list[_Listed] = []
    seen: set[str] = set()
    # The first one may be a fork's copy, which is older than the session.
    before_ms, before = min([session_ms, *filter(None, created[1:2])]), ""
    for message, told_ms, after_ms in zip(messages, created, _following(created), strict=True):
        try:
            name = message.object("info").id("id")
        except TranscriptError:
            name = f"{before}~"
        if name in seen:
            entry.faults.append(f"{message.path}: the same message twice")
            continue
        seen.add(name)
        if told_ms and not _is_absurd(name, told_ms, before_ms if found else None, after_ms):
            before_ms = told_ms
        else:
            message.note("info.time.created", "missing, or not when it was made")
            made_ms = minted_ms(name, near_ms=before_ms) or 0
            before_ms = made_ms if before_ms <= made_ms <= (after_ms or made_ms) else before_ms
        before = name
        found.append(_Listed(message, before_ms, name))
    return sorted(found, key=lambda one: one.age)


def _following(created: list[int | None]) -> list[int | None]:
    """For each the next one that there is."""
    found: list[int | None] = []
    after_ms: int | None = None
    for created_ms in reversed(created):
        found.append(after_ms)
        after_ms = created_ms or after_ms
    return found[::-1]


def _is_absurd(name: str, created_ms: int, before_ms: int | None, after_ms: int | None) -> bool:
    """Whether a time is neither where the message stands (OpenCode lists by time) nor near that in its id."""
    is_in_order = (before_ms is None or before_ms <= created_ms) and (after_ms is None or created_ms <= after_ms)
    made_ms = None if is_in_order else minted_ms(name, near_ms=created_ms if before_ms is None else before_ms)
    return made_ms is not None and abs(made_ms - created_ms) > DAY_MS


def _session(info: Place, began_ms: int) -> Session:
    """`began_ms` is when its first message was created, should it not say when itself."""
    time = info.object("time")
    created_ms = time.moment("created")
    if created_ms is None:
        time.note("created", "missing")
        created_ms = began_ms
    return Session(
        id=info.id("id"),
        parent_id=info.name("parentID"),
        version=info.name("version"),
        created_ms=created_ms,
        updated_ms=time.moment("updated") or created_ms,
        archived_ms=time.moment("archived"),
        title=info.text("title"),
        directory=info.text("directory"),
    )


def _turn_of(message: _Listed) -> str | None:
    """The turn that a message belongs to which cannot be read, as far as it says so."""
    info = message.place.fields.get("info")
    try:
        return turn_name(place(info, ""))
    except TranscriptError:
        parts = message.place.fields.get("parts")
        first = parts[0] if isinstance(parts, list) and parts else None
        named = first.get("messageID") if isinstance(first, dict) else None
        return named if isinstance(named, str) else None


def _child(part: Place, session: Session, unclaimed: dict[str, Place], depth: int) -> Transcript | None:
    metadata = part.object("state").fields.get("metadata")
    name = metadata.get("sessionId") if isinstance(metadata, dict) else None
    entry = unclaimed.get(name) if isinstance(name, str) else None
    # A fork goes on with its origin's subagents: their records stay with the origin.
    if entry is None or entry.need("info").fields.get("parentID") not in (None, session.id):
        return None
    if depth >= SUBAGENT_DEPTH_MAX:
        part.faults.append(f"{entry.path}: subagents nested deeper than {SUBAGENT_DEPTH_MAX}")
        return None
    del unclaimed[entry.need("info").id("id")]
    try:
        return _transcript(entry, unclaimed, depth + 1)
    except TranscriptError as error:
        part.faults.append(str(error))
        return None


def _undone_from(info: Place, listed: list[_Listed]) -> tuple[int, str] | None:
    """Where that begins which `/undo` has taken back, as `_Listed.age` says it; None where nothing was."""
    name = info.object("revert").fields.get("messageID")
    if not isinstance(name, str) or not listed:
        return None
    found = next((one.age for one in listed if one.name == name), None)
    made_ms = minted_ms(name, near_ms=listed[-1].created_ms)
    return found or (None if made_ms is None else (made_ms, name))


def _is_copied(told: list[_Told]) -> bool:
    return all(one.is_copy is True for one in told)


def _turn(session: Session, name: str, told: list[_Told], undone_from: tuple[int, str] | None) -> Turn:
    """Of a turn that goes on in a fork what is copied belongs to the fork's origin."""
    own = told if _is_copied(told) else [one for one in told if one.is_copy is not True]
    is_undone = undone_from is not None and own[0].listed.age >= undone_from
    values = [one.read.value for one in own]
    children = [
        part.child for value in values for part in value.parts if isinstance(part, Tool) and part.child is not None
    ]
    return Turn(
        session=session,
        id=name,
        messages=tuple(sorted(values, key=lambda value: not isinstance(value, User))),
        final=any(isinstance(value, Assistant) for value in values) and all(has_ended(value) for value in values),
        last_event_ms=max(
            [one.read.latest_ms for one in own] + [turn.last_event_ms for child in children for turn in child.turns]
        ),
        digest=_digest(session, name, [one.read.told for one in own], children, is_undone=is_undone),
        is_copy=all(one.is_copy is not False for one in own),
        is_undone=is_undone,
        faults=tuple(dict.fromkeys([fault for one in own for fault in one.listed.place.faults] + _faults_of(children))),
    )


def _faults_of(children: list[Transcript]) -> list[str]:
    found: list[str] = []
    for child in children:
        found += [*child.faults, *(one.why for one in child.unreadable)]
        found += [fault for turn in child.turns for fault in turn.faults]
    return found


def _digest(
    session: Session, name: str, messages: list[Canonical], children: list[Transcript], *, is_undone: bool
) -> str:
    told: list[Json] = [[session_digest(child.session), *(turn.digest for turn in child.turns)] for child in children]
    # In the order of their keys, as everywhere; what is undone says so, and everything else says nothing about it.
    subagents, names = canonical(told, "sessions") if told else ("[]",), canonical([session.id, name], "turn")
    undone = ',"undone":true}' if is_undone else "}"
    return sha256(('{"messages":[', *joined(messages), '],"subagents":', *subagents, ',"turn":', *names, undone))

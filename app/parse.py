"""The door from OpenCode's JSON to the values of `transcript`.

    {"root": "ses_…", "sessions": [
        {"info": {session}, "messages": [{"info": {…}, "parts": [{…}, …]}, …], "first_index": 0}, …]}

`sessions` holds the root and its subagents' sessions, each once, in any order, as do `messages` and `parts`.
`first_index` is the position in its session of the first message carried (0 when absent). Unknown keys are ignored;
a known key of another type than OpenCode's is refused, except inside a tool's `state.metadata`, where each tool puts
what it likes.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from app.attachment import data_url_bytes
from app.shape import Place, canonical, place, refuse, whole
from app.transcript import (
    Assistant,
    Failure,
    File,
    Json,
    Message,
    Other,
    Part,
    Reasoning,
    Session,
    Text,
    Tokens,
    Tool,
    Transcript,
    Turn,
    User,
    session_digest,
)

SUBAGENT_DEPTH_MAX = 32


def parse(snapshot: Json) -> Transcript:
    """The root session's transcript, its subagents under the calls that started them.

    Raises TranscriptError when the shape is not OpenCode's.
    """
    top = place(snapshot, "")
    entries = top.objects("sessions")
    _once([entry.need("info") for entry in entries], "session")
    unclaimed = {entry.need("info").identity("id"): entry for entry in entries}
    root = unclaimed.pop(top.identity("root"), None)
    return _transcript(root or refuse("root", "names none of the sessions"), unclaimed, 0)


def _transcript(entry: Place, unclaimed: dict[str, Place], depth: int) -> Transcript:
    """`unclaimed` loses each subagent's session to the first call that names it, which also rules out cycles."""
    if depth > SUBAGENT_DEPTH_MAX:
        refuse(entry.path, f"subagents nested deeper than {SUBAGENT_DEPTH_MAX}")
    session = _session(entry.need("info"))
    turns: dict[str, list[tuple[Place, Message]]] = {}
    origin: str | None = None
    for index, message in enumerate(_in_order(entry), entry.position("first_index") or 0):
        if message.need("info").need("time").need_moment("created") < session.created_ms:
            continue  # a fork's copy of what its origin has exported
        value = _message(message, index, session, unclaimed, depth)
        if isinstance(value, Assistant):
            origin = origin or _origin(message.need("info"))
        turns.setdefault(value.id if isinstance(value, User) else value.parent_id, []).append((message, value))
    session = replace(session, origin=origin)
    return Transcript(session, tuple(_turn(session, name, messages) for name, messages in turns.items()))


def _origin(info: Place) -> str | None:
    """Where OpenCode worked when it gave this answer (`root` beside it is the whole work tree's, or `/`)."""
    path = info.fields.get("path")
    cwd = path.get("cwd") if isinstance(path, dict) else None
    return cwd if isinstance(cwd, str) else None


def _in_order(entry: Place) -> list[Place]:
    messages = entry.objects("messages")
    _once([message.need("info") for message in messages], "message")
    return sorted(messages, key=_age)


def _age(message: Place) -> tuple[int, str]:
    info = message.need("info")
    return info.need("time").need_moment("created"), info.identity("id")


def _once(named: list[Place], what: str) -> None:
    seen: set[str] = set()
    for item in named:
        if item.id("id") in seen:
            refuse(item.at("id"), f"the same {what} twice")
        seen.add(item.id("id"))


def _session(info: Place) -> Session:
    time = info.need("time")
    created_ms = time.need_moment("created")
    return Session(
        id=info.identity("id"),
        parent_id=info.name("parentID"),
        version=info.name("version"),
        created_ms=created_ms,
        updated_ms=time.moment("updated") or created_ms,
        archived_ms=time.moment("archived"),
        title=info.text("title"),
        directory=info.text("directory"),
    )


def _message(message: Place, index: int, session: Session, unclaimed: dict[str, Place], depth: int) -> Message:
    info = message.need("info")
    parts = tuple(_part(part, session, unclaimed, depth) for part in _parts(message))
    role = info.identity("role")
    if role == "user":
        return User(
            id=info.identity("id"),
            index=index,
            created_ms=info.object("time").need_moment("created"),
            agent=info.name("agent"),
            system=info.text("system"),
            parts=parts,
        )
    if role != "assistant":
        refuse(info.at("role"), "neither user nor assistant")
    return _assistant(info, index, parts)


def _assistant(info: Place, index: int, parts: tuple[Part, ...]) -> Assistant:
    time = info.object("time")
    return Assistant(
        id=info.identity("id"),
        index=index,
        parent_id=info.id("parentID" if info.text("parentID") else "id"),
        created_ms=time.need_moment("created"),
        completed_ms=time.moment("completed"),
        agent=info.name("agent"),
        mode=info.name("mode"),
        provider_id=info.name("providerID") or "unknown",
        model_id=info.name("modelID") or "unknown",
        cost_usd=info.amount("cost"),
        tokens=_tokens(info.object("tokens")),
        finish=info.name("finish"),
        summary=info.flag("summary"),
        failure=_failure(info.object("error")),
        parts=parts,
    )


def _tokens(counts: Place) -> Tokens | None:
    cache = counts.object("cache")
    tokens = Tokens(
        input=counts.count("input") or 0,
        output=counts.count("output") or 0,
        reasoning=counts.count("reasoning") or 0,
        cache_read=cache.count("read") or 0,
        cache_write=cache.count("write") or 0,
    )
    # OpenCode writes zeros when the provider reported nothing, and before it did.
    return None if tokens == Tokens(0, 0, 0, 0, 0) else tokens


def _failure(error: Place) -> Failure | None:
    if not error.fields:
        return None
    data = error.object("data")
    return Failure(error.name("name") or "UnknownError", data.text("message"), data.count("statusCode"))


def _parts(message: Place) -> list[Place]:
    parts = message.objects("parts")
    _once(parts, "part")
    return sorted(parts, key=lambda part: part.identity("id"))


def _part(part: Place, session: Session, unclaimed: dict[str, Place], depth: int) -> Part:
    name, kind, time = part.identity("id"), part.identity("type"), part.object("time")
    if kind == "text":
        start_ms, end_ms = time.moment("start"), time.moment("end")
        return Text(name, part.text("text") or "", part.flag("synthetic"), start_ms, end_ms)
    if kind == "reasoning":
        return Reasoning(name, part.text("text") or "", time.moment("start"), time.moment("end"))
    if kind == "file":
        return File(name, part.text("mime"), part.text("filename"), data_url_bytes(part.text("url") or ""))
    if kind == "tool":
        return _tool(part, _child(part, session, unclaimed, depth))
    return Other(name, kind)


def _tool(part: Place, child: Transcript | None) -> Tool:
    state = part.need("state")
    metadata = state.fields.get("metadata")
    told = metadata if isinstance(metadata, dict) else {}
    value = state.fields.get("input")
    return Tool(
        id=part.identity("id"),
        call_id=part.name("callID") or part.identity("id"),
        name=part.identity("tool"),
        status=state.identity("status"),
        input={} if value is None else value,
        output=state.text("output"),
        error=state.text("error"),
        title=state.text("title"),
        exit_code=whole(told.get("exit")),
        truncated=told.get("truncated") is True,
        start_ms=state.object("time").moment("start"),
        end_ms=state.object("time").moment("end"),
        child=child,
    )


def _child(part: Place, session: Session, unclaimed: dict[str, Place], depth: int) -> Transcript | None:
    metadata = part.need("state").fields.get("metadata")
    name = metadata.get("sessionId") if isinstance(metadata, dict) else None
    entry = unclaimed.get(name) if isinstance(name, str) else None
    # A fork goes on with its origin's subagents: their records stay with the origin.
    if entry is None or entry.need("info").name("parentID") not in (None, session.id):
        return None
    return _transcript(unclaimed.pop(entry.need("info").identity("id")), unclaimed, depth + 1)


def _turn(session: Session, name: str, messages: list[tuple[Place, Message]]) -> Turn:
    values = tuple(value for _, value in messages)
    children = [
        part.child for value in values for part in value.parts if isinstance(part, Tool) and part.child is not None
    ]
    answered = any(isinstance(value, Assistant) for value in values)
    latest_ms = [_latest_ms(message) for message, _ in messages]
    return Turn(
        session=session,
        id=name,
        messages=values,
        final=answered and all(_ended(value) for value in values),
        facts_ms=max(latest_ms + [turn.facts_ms for child in children for turn in child.turns]),
        digest=_digest(session, name, [message for message, _ in messages], children),
    )


def _ended(message: Message) -> bool:
    if isinstance(message, Assistant) and message.completed_ms is None and message.failure is None:
        return False
    tools = [part for part in message.parts if isinstance(part, Tool)]
    children = [tool.child for tool in tools if tool.child is not None]
    return all(tool.status in {"completed", "error"} for tool in tools) and all(
        _ended(message) for child in children for turn in child.turns for message in turn.messages
    )


def _digest(session: Session, name: str, messages: list[Place], children: list[Transcript]) -> str:
    told: list[Json] = [[session_digest(child.session), *(turn.digest for turn in child.turns)] for child in children]
    told_messages = ",".join(canonical(_settled(message), message.path) for message in messages)
    names = canonical([session.id, name], "turn")
    whole_turn = f'{{"messages":[{told_messages}],"subagents":{canonical(told, "sessions")},"turn":{names}}}'
    return hashlib.sha256(whole_turn.encode("ascii")).hexdigest()


def _settled(message: Place) -> Json:
    """The message without its volatile fields: those that OpenCode still writes after the turn has ended."""
    info = dict(message.need("info").fields)
    if info.get("role") == "user":
        info.pop("summary", None)  # the turn's diffs; an assistant's `summary` is the mark of a compaction
    parts: list[Json] = []
    for part in _parts(message):
        state = part.fields.get("state")
        time = state.get("time") if isinstance(state, dict) else None
        if isinstance(state, dict) and isinstance(time, dict) and "compacted" in time:
            # When OpenCode stopped sending this output to the provider.
            lasting = {key: value for key, value in time.items() if key != "compacted"}
            parts.append({**part.fields, "state": {**state, "time": lasting}})
        else:
            parts.append(part.fields)
    return {"info": info, "parts": parts}


def _latest_ms(message: Place) -> int:
    holders = [message.need("info")]
    for part in _parts(message):
        holders += [part, part.object("state")] if part.fields.get("type") == "tool" else [part]
    moments = [
        whole(value) for holder in holders for key, value in holder.object("time").fields.items() if key != "compacted"
    ]
    return max(moment for moment in moments if moment is not None)

"""Writes an LLM call, prompt or session as OpenAI's chat completions, which Helicone's page shows as a chat.

    request   {"model": "anthropic/claude-…", "messages": [what is new since the turn's previous call]}
    response  {"id", "object", "model", "choices": [text and reasoning, tool calls], "usage", "parts"}

Helicone shows reasoning only beside text, never beside tool calls: hence two choices. The model carries its provider's
name because a bare `claude-…` makes Helicone read the log as Anthropic's shape. Content that was withheld is None here,
and leaves empty `messages` and `choices`.

What a person wrote, and the title of a session, are logs of the same shape: the text is a choice with role user.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from app.exporters.helicone.body import Log
from app.transcript.blobs import described
from app.transcript.identity import Encoding
from app.transcript.model import (
    Assistant,
    Failure,
    File,
    Json,
    Other,
    Part,
    Reasoning,
    Retry,
    Session,
    Subtask,
    Text,
    Tool,
    User,
)

USER_MODEL = "opencode/user"
SESSION_MODEL = "opencode/session"

_NO_CHAT = re.compile(
    r"claude|data:|tool:|gpt-3\.5-turbo-instruct|black-forest-labs/FLUX|opencode/(user|session)$", re.IGNORECASE
)
"""Beginnings that a call's model must not have: Helicone's pages would take the log for something else than a chat, or
`kind_of` for one of our own. People name providers as they like."""


def model(call: Assistant, encoding: Encoding) -> str:
    name = f"{call.provider_id}/{call.model_id}"
    return f"custom/{name}" if encoding > 1 and _NO_CHAT.match(name) else name


def prompt(message: User) -> list[Json]:
    """What OpenCode added, one message each, then what the person wrote: Helicone's list shows the last message."""
    added: list[Json] = []
    written: list[str] = []
    for part in message.parts:
        if isinstance(part, Text) and part.text is not None:
            if part.synthetic:
                added.append({"role": "user", "content": part.text, "synthetic": True})
            else:
                written.append(part.text)
        elif isinstance(part, File) and part.mime is not None:
            written.append(described(part.mime, part.size_bytes))
        elif isinstance(part, Subtask) and part.prompt is not None:
            written.append(part.prompt)
    return [*added, {"role": "user", "content": "\n".join(written)}] if written else added


def result(tool: Tool) -> list[Json]:
    """What the next call is told of a tool call; nothing as long as it runs."""
    told = tool.output if tool.output is not None else tool.error
    if told is None:
        return []
    return [{"role": "tool", "tool_call_id": tool.call_id, "name": tool.name, "content": told}]


def log(call: Assistant, news: list[Json], encoding: Encoding, *, interrupted: bool) -> Log:
    """The call's log, without its meta."""
    status, error = _outcome(call, interrupted=interrupted)
    choices, usage, name = _choices(call), _usage(call), model(call, encoding)
    response: dict[str, Json] = {"id": call.id, "object": "chat.completion", "model": name}
    if error:
        if encoding > 1:
            error["heliconeMessage"] = error["message"]  # what its list shows
        response = {"error": error, **response}
    if choices or not error:
        response["choices"] = choices
    if usage:
        response["usage"] = usage
    response["parts"] = part_counts(call.parts)
    retries = [_retry(part) for part in call.parts if isinstance(part, Retry)]
    if retries:
        response["retries"] = retries
    end_ms = call.completed_ms or max((end_ms for part in call.parts for end_ms in _times_ms(part)), default=0)
    return Log(
        request={"model": name, "messages": news},
        response=response,
        status=status,
        meta={},
        start_ms=call.created_ms,
        end_ms=max(call.created_ms, end_ms),
        first_token_ms=_first_token_ms(call),
    )


def session(value: Session, project: str | None) -> Log:
    """A session's log, without its meta."""
    facts: dict[str, Json] = {
        "model": SESSION_MODEL,
        "messages": [],
        "project": project,
        "opencode_version": value.version,
        "parent": value.parent_id,
        "archived_ms": value.archived_ms,
    }
    titles: list[Json] = [{"role": "user", "content": value.title}] if value.title else []
    return _said(value.id, facts, titles, value.created_ms)


def user(message: User, flag: str | None) -> Log:
    """A user message's log, without its meta. What the person wrote goes first: Helicone's list shows that alone."""
    facts: dict[str, Json] = {
        "model": USER_MODEL,
        "messages": [{"role": "system", "content": message.system}] if message.system else [],
        "files": attached(message),
        "agent": message.agent,
        "flag": flag,
        "parts": part_counts(message.parts),
    }
    texts = sorted(prompt(message), key=lambda text: isinstance(text, dict) and "synthetic" in text)
    return _said(message.id, facts, texts, message.created_ms)


def _said(name: str, facts: dict[str, Json], texts: list[Json], start_ms: int) -> Log:
    """Something that no model said, in the shape of an answer."""
    response: dict[str, Json] = {
        "id": name,
        "object": "chat.completion",
        "model": facts["model"],
        "choices": [{"index": index, "message": text} for index, text in enumerate(texts)],
    }
    return Log(known(facts), response, 200, {}, start_ms, start_ms, None)


def attached(message: User) -> list[Json] | None:
    """Name, type and size of each file that came with it; None for none."""
    files = [part for part in message.parts if isinstance(part, File) and (part.name or part.mime)]
    return [known({"name": part.name, "type": part.mime, "bytes": part.size_bytes}) for part in files] or None


def known(facts: dict[str, Json]) -> dict[str, Json]:
    return {name: fact for name, fact in facts.items() if fact is not None}


def part_counts(parts: tuple[Part, ...]) -> dict[str, Json]:
    """How many parts of which type, in the order of first appearance."""
    counts: dict[str, Json] = {}
    counts.update(Counter(part.type if isinstance(part, Other) else type(part).__name__.lower() for part in parts))
    return counts


def _outcome(call: Assistant, *, interrupted: bool) -> tuple[int, dict[str, Json]]:
    """HTTP status and error: OpenCode keeps the provider's status only when there was an error."""
    if call.failure is not None:
        return _failed(call.failure)
    if call.completed_ms is None:
        if interrupted:
            return 500, _error("Interrupted", "interrupted: OpenCode ended before the answer was complete")
        return 500, _error("Unfinished", "unfinished: the answer was not complete when it was read")
    if call.finish is None and all(isinstance(part, Other | Retry) for part in call.parts):
        # So OpenCode leaves a call whose context was too long, before it compacts the session.
        return 500, _error("NoAnswer", "ended without an answer")
    return 200, {}


def _failed(failure: Failure) -> tuple[int, dict[str, Json]]:
    # A stream that broke down carries the 200 with which it began.
    status = failure.status if failure.status in range(400, 600) else None
    return status or 500, _error(failure.name, failure.message or failure.name)


def _error(kind: str, message: str) -> dict[str, Json]:
    return {"message": message, "type": kind}


def _choices(call: Assistant) -> list[Json]:
    content = "\n\n".join(filter(None, (_text_of(part) for part in call.parts)))
    reasoning = "\n\n".join(part.text for part in call.parts if isinstance(part, Reasoning) and part.text)
    messages: list[dict[str, Json]] = []
    if content or reasoning:
        messages.append({"content": content, "reasoning": reasoning} if reasoning else {"content": content})
    asked: list[Json] = [_tool_call(part) for part in call.parts if isinstance(part, Tool) and part.input is not None]
    if asked:
        messages.append({"content": None, "tool_calls": asked})
    finish = call.finish.replace("-", "_") if call.finish else None
    return [
        {"index": index, "finish_reason": finish, "message": {"role": "assistant", **message}}
        for index, message in enumerate(messages)
    ]


def _text_of(part: Part) -> str | None:
    """What a part adds to the answer's text; a stream that was dropped and tried again leaves an empty one behind."""
    if isinstance(part, File):
        return None if part.mime is None else described(part.mime, part.size_bytes)
    return part.text if isinstance(part, Text) else None


def _retry(part: Retry) -> Json:
    """Why a call was tried again, as far as OpenCode kept it."""
    status, error = (None, None) if part.failure is None else _failed(part.failure)
    return known({"attempt": part.attempt, "status": status, "error": error})


def _tool_call(tool: Tool) -> Json:
    arguments = json.dumps(tool.input, ensure_ascii=False, separators=(",", ":"))
    return {"id": tool.call_id, "type": "function", "function": {"name": tool.name, "arguments": arguments}}


def _usage(call: Assistant) -> dict[str, Json]:
    """Helicone takes cached tokens off the prompt again, and loses reasoning tokens unless they are completion."""
    usage: dict[str, Json] = {}
    tokens = call.tokens
    if tokens is not None:
        prompt_tokens = tokens.input + tokens.cache_read
        completion_tokens = tokens.output + tokens.reasoning
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": tokens.cache_read, "cache_write_tokens": tokens.cache_write},
        }
    if call.cost_usd:
        usage["cost"] = call.cost_usd
    return usage


def _first_token_ms(call: Assistant) -> int | None:
    starts_ms = [part.start_ms for part in call.parts if isinstance(part, Text | Reasoning)]
    wait_ms = min((start_ms for start_ms in starts_ms if start_ms is not None), default=-1) - call.created_ms
    return wait_ms if wait_ms >= 0 else None


def _times_ms(part: Part) -> list[int]:
    if isinstance(part, Text | Reasoning | Tool):
        return [time_ms for time_ms in (part.start_ms, part.end_ms) if time_ms is not None]
    return []

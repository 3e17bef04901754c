"""Makes the spans of a turn: what each says, where it stands and when it was. The root comes last.

    invoke_agent build             the turn: from its user message to the last end inside of it
      chat claude-sonnet-4-5       one LLM call: until the model fell silent
      execute_tool task
        invoke_agent general       a subagent's turn, in the same trace
          chat …, execute_tool …

A span covers all that is inside of it, also a subagent that works on after its call was answered. Names and
attributes are those of the GenAI conventions 1.41.0; `opencode.*` is ours; `input.value` and `output.value` are
OpenInference's, without which Phoenix lists a turn without a word. Content that is None was withheld: no attribute is
left of it. A root says how many spans its trace has, so that whoever reads it back knows whether all are there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from app.exporters.encoder import Frame
from app.exporters.otlp import messages
from app.exporters.otlp.ids import span_id, trace_id
from app.transcript.model import (
    Assistant,
    Json,
    Message,
    Other,
    Reasoning,
    Retry,
    Session,
    Text,
    Tool,
    Turn,
    User,
    is_llm_call,
)

SPAN_COUNT = "opencode.span.count"
INTERNAL, CLIENT = 1, 3
NAME_CHARACTERS_MAX = 128
PROVIDERS = {
    "google": "gcp.gemini",
    "google-vertex": "gcp.vertex_ai",
    "amazon-bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "xai": "x_ai",
    "mistral": "mistral_ai",
}
"""OpenCode's names that the conventions have others for."""

Value: TypeAlias = str | bool | int | float | list[str]


@dataclass(frozen=True, slots=True)
class Error:
    """Why something did not succeed."""

    type: str
    """HTTP status or a name."""
    message: str | None = None
    is_exception: bool = False
    """It is told as an event, too."""


@dataclass(frozen=True, slots=True)
class Span:
    id: bytes
    parent: bytes
    """Empty for the root."""
    name: str
    kind: int
    start_ms: int
    end_ms: int
    attributes: dict[str, Value | None]
    """What is None is left out."""
    error: Error | None = None


@dataclass(slots=True)
class _Inside:
    """What was made below a span so far: when it was, and how much."""

    start_ms: int
    end_ms: int
    spans: int = 0

    def cover(self, start_ms: int, end_ms: int, spans: int = 0) -> None:
        self.start_ms, self.end_ms = min(self.start_ms, start_ms), max(self.end_ms, end_ms)
        self.spans += spans


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a span stands, and what all spans of its session say."""

    frame: Frame
    trace: bytes
    session: Session
    parent: bytes

    def id(self, *steps: str) -> bytes:
        return span_id(self.trace, self.session.id, *steps)

    def attributes(self, operation: str) -> dict[str, Value | None]:
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.conversation.id": self.frame.root_session_id,
            "session.id": self.frame.root_session_id,
            "user.id": self.frame.user_id or None,
            "opencode.session.id": self.session.id,
        }


def spans(turn: Turn, frame: Frame) -> Iterator[Span]:
    """All of them; one is in memory at a time."""
    spot = _Spot(frame, trace_id(frame.root_session_id, turn.id), turn.session, b"")
    yield from _agent(turn, spot)


def _agent(turn: Turn, spot: _Spot) -> Generator[Span, None, _Inside]:
    own = spot.id(turn.id, "agent")
    below = _Spot(spot.frame, spot.trace, spot.session, own)
    began_ms = min(message.created_ms for message in turn.messages)
    inside = _Inside(began_ms, began_ms)
    news: list[Json] = []
    for message in turn.messages:
        inside.cover(message.created_ms, message.created_ms)
        if isinstance(message, User):
            news += messages.prompt(message)
        elif is_llm_call(message):
            span = _chat(message, news, below)
            inside.cover(span.start_ms, span.end_ms, 1)
            yield span
            news = []
        for part in message.parts:
            if isinstance(part, Tool):
                found = yield from _tool(part, message, below)
                inside.cover(found.start_ms, found.end_ms, found.spans)
                news += messages.result(part)
    inside.spans += 1
    count = {SPAN_COUNT: inside.spans} if not spot.parent else {}
    agent = next((message.agent for message in turn.messages if message.agent), None)
    yield Span(
        id=own,
        parent=spot.parent,
        name=_name("invoke_agent", agent),
        kind=INTERNAL,
        start_ms=inside.start_ms,
        end_ms=inside.end_ms,
        attributes={**spot.attributes("invoke_agent"), **_of_agent(turn, agent), **count},
        error=_of_turn(turn, spot.frame),
    )
    return inside


def _of_agent(turn: Turn, agent: str | None) -> dict[str, Value | None]:
    """No usage: where a receiver sums, it would be counted twice."""
    asked = next((message for message in turn.messages if isinstance(message, User)), None)
    said = [message for message in turn.messages if isinstance(message, Assistant) and messages.last_text(message)]
    prompt = messages.prompt(asked) if asked is not None else []
    final = messages.final(said[-1]) if said else []
    question = messages.asked(asked) if asked is not None else None
    text = messages.last_text(said[-1]) if said else None
    return {
        "gen_ai.agent.name": agent,
        "gen_ai.input.messages": messages.fitted(prompt) if prompt else None,
        "gen_ai.output.messages": messages.fitted(final) if final else None,
        "input.value": question,
        "input.mime_type": None if question is None else "text/plain",
        "output.value": text,
        "output.mime_type": None if text is None else "text/plain",
        "opencode.turn.id": turn.id,
        "opencode.turn.undone": turn.is_undone or None,
        "opencode.session.title": turn.session.title,
        "opencode.version": turn.session.version,
    }


def _of_turn(turn: Turn, frame: Frame) -> Error | None:
    """That of its last call; what an earlier one failed at was made up for."""
    calls = [message for message in turn.messages if isinstance(message, Assistant) and is_llm_call(message)]
    if calls:
        error = _of_call(calls[-1], frame)
        return None if error is None else Error(error.type, error.message)
    has_answer = any(isinstance(message, Assistant) for message in turn.messages)
    return None if has_answer else _unfinished(frame)


def _chat(call: Assistant, news: list[Json], spot: _Spot) -> Span:
    answer = messages.answer(call)
    error = _of_call(call, spot.frame)
    return Span(
        id=spot.id(call.id, "chat"),
        parent=spot.parent,
        name=_name("chat", call.model_id),
        kind=CLIENT,
        start_ms=call.created_ms,
        end_ms=max(call.created_ms, _silent_ms(call)),
        attributes={
            **spot.attributes("chat"),
            "gen_ai.provider.name": PROVIDERS.get(call.provider_id, call.provider_id),
            "gen_ai.request.model": call.model_id,
            "gen_ai.request.stream": True,
            "gen_ai.response.finish_reasons": [messages.finish_reason(call)],
            "gen_ai.response.time_to_first_chunk": _first_chunk_s(call),
            **_usage(call),
            "gen_ai.input.messages": messages.fitted(news) if news else None,
            "gen_ai.output.messages": messages.fitted(answer) if answer else None,
            "opencode.retries": sum(isinstance(part, Retry) for part in call.parts) or None,
        },
        error=error,
    )


def _usage(call: Assistant) -> dict[str, Value | None]:
    """Input includes what was cached, output the reasoning: OpenCode counts without."""
    cost = {"gen_ai.usage.cost": call.cost_usd or None}
    tokens = call.tokens
    if tokens is None:
        return {**cost}
    return {
        "gen_ai.usage.input_tokens": tokens.input + tokens.cache_read + tokens.cache_write,
        "gen_ai.usage.output_tokens": tokens.output + tokens.reasoning,
        "gen_ai.usage.cache_read.input_tokens": tokens.cache_read,
        # `cache_write`, as it is called since, is not taken off the input by all receivers.
        "gen_ai.usage.cache_creation.input_tokens": tokens.cache_write,
        "gen_ai.usage.reasoning.output_tokens": tokens.reasoning,
        **cost,
    }


def _silent_ms(call: Assistant) -> int:
    """When the model fell silent; the message is completed only when its tools are."""
    said = [
        part.end_ms or part.start_ms or 0 if isinstance(part, Text | Reasoning) else part.start_ms or 0
        for part in call.parts
        if isinstance(part, Text | Reasoning | Tool)
    ]
    return max(said, default=0) or call.completed_ms or 0


def _first_chunk_s(call: Assistant) -> float | None:
    starts_ms = [part.start_ms for part in call.parts if isinstance(part, Text | Reasoning)]
    wait_ms = min((start_ms for start_ms in starts_ms if start_ms is not None), default=-1) - call.created_ms
    return wait_ms / 1000 if wait_ms >= 0 else None


def _of_call(call: Assistant, frame: Frame) -> Error | None:
    if call.failure is not None:
        # A stream that broke down carries the 200 with which it began.
        status = call.failure.status if call.failure.status in range(400, 600) else None
        return Error(str(status or call.failure.name), call.failure.message, is_exception=True)
    if call.completed_ms is None:
        return _unfinished(frame)
    if call.finish is None and all(isinstance(part, Other | Retry) for part in call.parts):
        # So OpenCode leaves a call whose context was too long, before it compacts the session.
        return Error("NoAnswer", "ended without an answer")
    return None


def _unfinished(frame: Frame) -> Error:
    if frame.interrupted:
        return Error("interrupted", "OpenCode ended before it was complete")
    return Error("unfinished", "not complete when it was read")


def _tool(tool: Tool, message: Message, spot: _Spot) -> Generator[Span, None, _Inside]:
    own = spot.id(message.id, tool.id, "tool")
    start_ms = message.created_ms if tool.start_ms is None else tool.start_ms
    inside = _Inside(start_ms, max(start_ms, tool.end_ms or 0))
    if tool.child is not None:
        for turn in tool.child.turns:
            found = yield from _agent(turn, _Spot(spot.frame, spot.trace, tool.child.session, own))
            inside.cover(found.start_ms, found.end_ms, found.spans)
    inside.spans += 1
    yield Span(
        id=own,
        parent=spot.parent,
        name=_name("execute_tool", tool.name),
        kind=INTERNAL,
        start_ms=inside.start_ms,
        end_ms=inside.end_ms,
        attributes={
            **spot.attributes("execute_tool"),
            "gen_ai.tool.name": tool.name,
            "gen_ai.tool.call.id": tool.call_id,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.arguments": None if tool.input is None else messages.fitted(tool.input),
            "gen_ai.tool.call.result": tool.output,
            "opencode.tool.exit": tool.exit_code,
        },
        error=_of_tool(tool, spot.frame),
    )
    return inside


def _of_tool(tool: Tool, frame: Frame) -> Error | None:
    """A shell command that exits with 3 has succeeded as a tool call."""
    match tool.status:
        case "completed":
            return None
        case "error":
            return Error("tool_error", tool.error)
        case _:
            return _unfinished(frame)


def _name(operation: str, what: str | None) -> str:
    return f"{operation} {what}"[:NAME_CHARACTERS_MAX] if what else operation

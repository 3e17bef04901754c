"""Usage: what the calls of each turn came to, by model, agent and day: numbers and names, no text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from app.sources.opencode.rows import Rows, Usage
from app.transcript.fields import Place
from app.transcript.id_times import is_copy
from app.transcript.model import Json


def usage_of_messages(rows: Rows, since_ms: int, among: Collection[str] | None = None) -> Iterator[Usage]:
    """Read from each message that is not older, where no table can be summed."""
    for head in rows.heads():
        if among is not None and head.id not in among:
            continue
        recent = [name for name, created_ms in rows.created_ms(head.id).items() if created_ms >= since_ms]
        for message in rows.messages(head.id, recent):
            told = message.get("info") if isinstance(message, dict) else None
            if isinstance(told, dict) and told.get("role") == "assistant":
                yield from _of_message(head.id, head.created_ms, told, _failed_tools(message))


def _failed_tools(message: Json) -> int:
    parts = message.get("parts") if isinstance(message, dict) else None
    tools = [one for one in parts if isinstance(one, dict)] if isinstance(parts, list) else []
    return sum(one.get("type") == "tool" and Place("", one).object("state").text("status") == "error" for one in tools)


def _of_message(session: str, session_ms: int, told: dict[str, Json], failed_tools: int) -> Iterator[Usage]:
    info = Place("", told)
    tokens, cache = info.object("tokens"), info.object("tokens").object("cache")
    name, created_ms = info.text("id") or "", info.object("time").moment("created") or 0
    used = [tokens.count(one) or 0 for one in ("input", "output", "reasoning")]
    cached = [cache.count(one) or 0 for one in ("read", "write")]
    failed = told.get("error") is not None
    if is_copy(name, created_ms, session_ms) or not (failed or told.get("finish") or any((*used, *cached))):
        return
    yield Usage(
        session=session,
        turn=info.text("parentID") or name,
        day=datetime.fromtimestamp(created_ms / 1000).astimezone().strftime("%Y-%m-%d"),
        model=model_name(info.text("providerID"), info.text("modelID")),
        agent=info.text("agent") or info.text("mode") or "",
        calls=1,
        errors=int(failed),
        failed_tools=failed_tools,
        input_tokens=used[0],
        cache_read_tokens=cached[0],
        cache_write_tokens=cached[1],
        output_tokens=used[1] + used[2],
        cost_usd=info.amount("cost"),
    )


def model_name(provider: str | None, model: str | None) -> str:
    return "/".join(filter(None, (provider, model)))


def own_of(found: Iterable[tuple[Usage, int, int, str]]) -> Iterator[Usage]:
    """Without what forks have copied; each with its time, its session's and, of what is older than that, its id."""
    return (one for one, created_ms, session_ms, name in found if not (name and is_copy(name, created_ms, session_ms)))

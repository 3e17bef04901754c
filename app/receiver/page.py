"""Page of the receiver: its sessions as Helicone would show them, as HTML without any script. Pure.

    /                 one line a session: name, title, start, requests, tokens, cost, errors
    /session?id=…     the session's tree of requests, each with what was asked and answered

Everything that was received is text of somebody else's: it is escaped, and the page may load nothing (see `POLICY`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from html import escape
from typing import Any, TypeAlias
from urllib.parse import urlencode

from app.receiver.manual_log import Log, as_object
from app.receiver.store import Session, Stored

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of every page."""
TEXT_MAX = 20_000
"""Characters of one text that are shown."""
FAILED = 400
"""HTTP statuses from here on are errors."""

_Text: TypeAlias = tuple[str, str]
"""Who says it, and what."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bad: #c33 }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem }
h1 { font-size: 1.25rem; margin: 0 } p.sub { color: #888; margin: .2rem 0 1.2rem }
a { color: inherit } table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600; color: #888 }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } .bad { color: var(--bad) }
details { border-left: 2px solid var(--line); padding-left: .6rem } summary { cursor: pointer; padding: .15rem 0 }
summary b { font-weight: 600 } summary span { color: #888; margin-left: .6rem; font-variant-numeric: tabular-nums }
.who { color: #888; font-size: .8rem; margin: .6rem 0 .1rem } code { font-size: .9em }
pre { background: var(--soft); border-radius: 6px; padding: .5rem .7rem; margin: 0 0 .4rem; white-space: pre-wrap;
 overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace }
"""


def overview(sessions: Sequence[Session]) -> str:
    """The list of sessions, the latest first."""
    if not sessions:
        body = (
            "<h1>No session yet</h1><p class=sub>Start OpenCode in a project and ask it something: the session stands"
            " here a moment after its answer. Nothing comes? Type <code>opencode-helicone status</code>.</p>"
        )
        return _page("Sessions", body)
    rows = "".join(_line(one) for one in sessions)
    head = "".join(
        f"<th{' class=n' if is_number else ''}>{name}</th>"
        for name, is_number in (
            ("Session", False),
            ("Started", True),
            ("Requests", True),
            ("Tokens", True),
            ("Cost", True),
            ("Errors", True),
        )
    )
    return _page("Sessions", f"<h1>Sessions</h1>{_SUB}<table><tr>{head}</tr>{rows}</table>")


_SUB = "<p class=sub>What this local receiver holds, as Helicone would show it. It is no Helicone.</p>"


def _closed() -> str:
    told = "Open the address that <code>opencode-helicone receiver</code> printed: everybody on this machine gets here."
    return _page("Closed", f"<h1>Closed</h1><p>{told}</p>")


def _line(one: Session) -> str:
    link = escape(f"session?{urlencode({'id': one.id})}")
    title = f"<br>{escape(one.title)}" if one.title else ""
    errors = f"<span class=bad>{one.errors}</span>" if one.errors else "0"
    cells = (_moment(one.start_ms), f"{one.requests:,}", f"{one.tokens:,}", _cost(one.cost_usd) or "$0", errors)
    numbers = "".join(f"<td class=n>{cell}</td>" for cell in cells)
    return f'<tr><td><a href="{link}" dir=auto>{escape(one.name or one.id)}{title}</a></td>{numbers}</tr>'


def session(rows: Sequence[Stored]) -> str:
    """One session's requests as the tree of their paths."""
    if not rows:
        return _page("No such session", '<h1>No such session</h1><p><a href="./">All sessions</a></p>')
    name = rows[0].log.properties.get("Helicone-Session-Name", "")
    tokens = sum(_read(row.log) + row.log.completion_tokens for row in rows)
    cost = sum(row.log.cost_usd for row in rows)
    told = f"{len(rows)} requests, {tokens:,} tokens{f', {_cost(cost)}' if cost else ''}"
    head = f'<p class=sub><a href="./">All sessions</a></p><h1 dir=auto>{escape(name)}</h1><p class=sub>{told}</p>'
    return _page(name, head + "".join(_tree(in_tree(rows))))


def in_tree(rows: Iterable[Stored]) -> list[Stored]:
    """As Helicone shows them: folders by path, each where its first request stands in time."""
    first: dict[str, int] = {}
    rows = list(rows)
    for position, row in enumerate(rows):
        for folder in folders(row.path):
            first.setdefault(folder, position)
    return sorted(rows, key=lambda row: [first[folder] for folder in folders(row.path)])


def folders(path: str) -> list[str]:
    """Every folder from the top down to `path` itself."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _tree(rows: Sequence[Stored]) -> Iterator[str]:
    depth_min = min(row.path.count("/") for row in rows)
    for row in rows:
        indent = min(row.path.count("/") - depth_min, 12)
        log = row.log
        read = _read(log)
        tokens = f"{read:,} + {log.completion_tokens:,} tokens" if read or log.completion_tokens else ""
        status = f"<span class=bad>{log.status}</span>" if log.status >= FAILED else ""
        facts = (log.model, f"{log.latency_ms:,} ms" if log.latency_ms else "", tokens, _cost(log.cost_usd))
        shown = "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
        label = escape(row.path.rsplit("/", 1)[-1])
        said = texts(_object(log.request_body), _object(log.response_body))
        shown_texts = "".join(
            f"<p class=who>{escape(who)}</p><pre dir=auto>{escape(_cut(text))}</pre>" for who, text in said
        )
        is_open = " open" if log.model.startswith("opencode/") else ""
        yield (
            f'<details{is_open} style="margin-left:{indent * 1.4:g}rem">'
            f"<summary><b>{label}</b>{shown}{status}</summary>{shown_texts}</details>"
        )


def texts(request: dict[str, Any], response: dict[str, Any]) -> Iterator[_Text]:
    """What was asked and answered, in the shapes that this program sends; any other as JSON."""
    if not request and not response:
        yield "stored without its bodies", ""
    for message in _objects(request.get("messages")):
        yield from _message(message)
    if "input" in request:
        yield "input", _written(request["input"])
    error = as_object(response.get("error"))
    if error:
        yield "error", str(error.get("message"))
    for choice in _objects(response.get("choices")):
        yield from _message(as_object(choice.get("message")))
    for name in ("output", "result", "message", "data"):
        if name in response:
            yield name, _written(response[name])
    if not request.keys() & {"messages", "input"} and not response.keys() & {"choices", "error", "output"}:
        yield "log", _written(response or request)


def _message(message: dict[str, Any]) -> Iterator[_Text]:
    who = str(message.get("role") or "assistant")
    if message.get("reasoning"):
        yield "reasoning", _written(message["reasoning"])
    if message.get("content"):
        yield who, _written(message["content"])
    for call in _objects(message.get("tool_calls")):
        function = as_object(call.get("function"))
        yield f"calls {function.get('name')}", _written(function.get("arguments"))


def _object(text: str) -> dict[str, Any]:
    try:
        return as_object(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}\n… and {len(text) - TEXT_MAX:,} characters more"


def _read(log: Log) -> int:
    return log.prompt_tokens + log.cache_read_tokens


def _cost(usd: float) -> str:
    return f"${usd:.4f}" if usd else ""


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M")


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        '<meta name=viewport content="width=device-width">'
        f"<style>{_STYLE}</style>{body}</html>"
    )


CLOSED = _closed()
"""For who comes without a pass."""

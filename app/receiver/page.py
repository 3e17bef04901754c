"""Page of the receiver: its sessions as Helicone would show them. Pure, but for the templates.

    /                 one line a session: name, title, start, requests, tokens, cost, errors
    /session?id=…     the session's tree of requests, each with what was asked and answered

Everything that was received is text of somebody else's: it is escaped, and the page may load nothing but its own style.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from app.pages.template import Templates
from app.pages.waterfall import Span, bars
from app.receiver.manual_log import Log
from app.receiver.store import Session, Stored
from app.receiver.texts import texts_of

TEXT_MAX = 20_000
"""Characters of one text that are shown."""
FAILED = 400
"""HTTP statuses from here on are errors."""
_BRAND = "opencode-helicone receiver"
_PROMPTS = ("opencode/user", "data:opencode.user")
"""Models of what a person has said: there a turn begins."""


def overview(sessions: Sequence[Session]) -> str:
    """The list of sessions, the latest first."""
    return _page("receiver_sessions.html", "Sessions", sessions=sessions)


def closed() -> str:
    """For who comes without a pass."""
    return _page("receiver_closed.html", "Closed")


def session(rows: Sequence[Stored]) -> str:
    """One session's requests as the tree of their paths."""
    if not rows:
        return _page("receiver_nothing.html", "No such session")
    return _page(
        "receiver_session.html",
        "Session",
        shown_name=rows[0].log.properties.get("Helicone-Session-Name", ""),
        requests=len(rows),
        tokens=sum(_read(row.log) + row.log.completion_tokens for row in rows),
        cost_usd=sum(row.log.cost_usd for row in rows),
        turns=[bars(turn) for turn in _turns(in_tree(rows))],
    )


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


def _turns(rows: Sequence[Stored]) -> Iterator[list[Span]]:
    """Each has an axis of its own: hours may lie between two."""
    depth_min = min(row.path.count("/") for row in rows)
    found: list[Span] = []
    for row in rows:
        depth = row.path.count("/") - depth_min
        if row.log.model in _PROMPTS and depth <= 1 and found:
            yield found
            found = []
        found.append(_span(row, depth))
    yield found


def _span(row: Stored, depth: int) -> Span:
    log = row.log
    read = _read(log)
    tokens = f"{read:,} + {log.completion_tokens:,} tokens" if read or log.completion_tokens else ""
    facts = (log.model, tokens, f"${log.cost_usd:.4f}" if log.cost_usd else "")
    return Span(
        label=row.path.rsplit("/", 1)[-1],
        depth=depth,
        kind=_kind(log.model),
        start_ms=log.created_ms,
        end_ms=log.created_ms + log.latency_ms,
        facts=tuple(fact for fact in facts if fact),
        state=f"failed {log.status}" if log.status >= FAILED else "",
        is_bad=log.status >= FAILED,
        texts=tuple((who, _cut(text)) for who, text in texts_of(log)),
    )


def _kind(model: str) -> str:
    if model in _PROMPTS:
        return "user"
    if model.startswith("tool:"):
        return "tool"
    return "session" if model.startswith(("opencode/", "data:")) else "assistant"


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}\n… and {len(text) - TEXT_MAX:,} characters more"


def _read(log: Log) -> int:
    return log.prompt_tokens + log.cache_read_tokens


@cache
def _templates() -> Templates:
    return Templates(Path(__file__).parent / "templates")


def _page(name: str, title: str, **values: object) -> str:
    # A session's own name is no title: browsers write that to their history.
    return _templates().render(name, {"title": title, "brand": _BRAND, "nav": (), **values})

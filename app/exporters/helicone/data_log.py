"""Writes prompts and sessions as Helicone's `data`, as version 0.1.0 did: encoding 1.

Its pages have no view for such a log. It is made for sessions that have them already: one of another model would stand
beside the old one, not replace it.
"""

from __future__ import annotations

from app.exporters.helicone.body import Log
from app.exporters.helicone.chat import attached, known, part_counts
from app.transcript.model import Json, Session, Text, User

SESSION_MODEL = "data:opencode.session"
USER_MODEL = "data:opencode.user"


def session(value: Session, project: str | None) -> Log:
    facts: dict[str, Json] = {
        "title": value.title,
        "project": project,
        "opencode_version": value.version,
        "parent": value.parent_id,
        "archived_ms": value.archived_ms,
    }
    return _log(SESSION_MODEL, facts, value.created_ms)


def user(message: User, flag: str | None) -> Log:
    texts = [part for part in message.parts if isinstance(part, Text) and part.text is not None]
    facts: dict[str, Json] = {
        "text": [{"text": part.text, **({"synthetic": True} if part.synthetic else {})} for part in texts] or None,
        "files": attached(message),
        "agent": message.agent,
        "system": message.system,
        "flag": flag,
        "parts": part_counts(message.parts),
    }
    return _log(USER_MODEL, facts, message.created_ms)


def _log(model: str, facts: dict[str, Json], start_ms: int) -> Log:
    head: dict[str, Json] = {"_type": "data", "name": model.removeprefix("data:")}
    return Log({**head, **known(facts)}, {**head, "status": "success"}, 200, {}, start_ms, start_ms, None)

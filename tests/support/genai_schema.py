"""Rules of the message lists of the GenAI conventions 1.41.0, written down from their JSON schemas.

The schemas themselves are in no package that could be installed. On 2026-11-30 they were run beside these rules: all
518 lists of the recordings and 511 of generated turns are valid by both, and a list without `finish_reason` by neither.
Phoenix's own models of 1.41.1 judge the same lists where it is installed.

Stricter than the schemas where receivers lose what they allow: there a part of an unknown kind, or a role, is any text.
"""

from __future__ import annotations

from typing import Any

ROLES = {"system", "user", "assistant", "tool"}
FINISH_REASONS = {"stop", "length", "content_filter", "tool_call", "error"}
PARTS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "text": {"content": str},
    "reasoning": {"content": str},
    "tool_call": {"id": (str, type(None)), "name": str},
    "tool_call_response": {"id": (str, type(None)), "response": object},
}
"""What each kind must have, and of which type."""


def faults(messages: Any, *, is_output: bool) -> list[str]:
    """What is wrong with a list, by place."""
    if not isinstance(messages, list) or not messages:
        return ["not a list with a message"]
    return [fault for at, message in enumerate(messages) for fault in _of_message(message, str(at), is_output)]


def _of_message(message: Any, at: str, is_output: bool) -> list[str]:  # noqa: FBT001
    if not isinstance(message, dict):
        return [f"{at}: no object"]
    found = [] if message.get("role") in ROLES else [f"{at}.role"]
    if is_output and not isinstance(message.get("finish_reason"), str):
        found.append(f"{at}.finish_reason")
    parts = message.get("parts")
    if not isinstance(parts, list) or not parts:
        return [*found, f"{at}.parts"]
    return found + [fault for number, part in enumerate(parts) for fault in _of_part(part, f"{at}.parts.{number}")]


def _of_part(part: Any, at: str) -> list[str]:
    needed = PARTS.get(str(part.get("type"))) if isinstance(part, dict) else None
    if needed is None:
        return [f"{at}.type"]
    return [f"{at}.{name}" for name, kind in needed.items() if name not in part or not isinstance(part[name], kind)]

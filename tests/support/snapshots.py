"""Small snapshots in OpenCode's shape, for what no recording shows."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

SESSION = "ses_root"
CREATED_MS = 1_000_000


def session(name: str = SESSION, **info: Any) -> Fields:
    return {
        "id": name,
        "title": "a title",
        "directory": "/home/dev/project",
        "version": "1.18.33",
        "time": {"created": CREATED_MS, "updated": CREATED_MS + 1},
        **info,
    }


def entry(*messages: Fields, **info: Any) -> Fields:
    """One element of a snapshot's `sessions`. Each message and part says where it belongs, as OpenCode's do."""
    told = session(**info)
    return {"info": told, "messages": [_placed(message, told["id"]) for message in messages]}


def _placed(message: Fields, name: str) -> Fields:
    info = {**message["info"], "sessionID": name}
    ids = {"sessionID": name, "messageID": info.get("id")}
    return {**message, "info": info, "parts": [{**part, **ids} for part in message["parts"]]}


def snapshot(root: Fields, *others: Fields) -> Fields:
    return {"root": root["info"]["id"], "sessions": [root, *others]}


def user(name: str = "msg_1", created_ms: int = CREATED_MS + 10, *parts: Fields, **info: Any) -> Fields:
    time = {"created": created_ms}
    return {"info": {"id": name, "role": "user", "agent": "build", "time": time, **info}, "parts": list(parts)}


def assistant(
    name: str = "msg_2", created_ms: int = CREATED_MS + 20, *parts: Fields, parent: str = "msg_1", **info: Any
) -> Fields:
    """A call that ended well 100 ms later, unless `info` says otherwise."""
    told = {
        "id": name,
        "role": "assistant",
        "parentID": parent,
        "mode": "build",
        "agent": "build",
        "providerID": "anthropic",
        "modelID": "claude-x",
        "cost": 0,
        "tokens": {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}},
        "time": {"created": created_ms, "completed": created_ms + 100},
        "finish": "stop",
        **info,
    }
    return {"info": {key: value for key, value in told.items() if value is not None}, "parts": list(parts)}


def unfinished(name: str = "msg_2", created_ms: int = CREATED_MS + 20, *parts: Fields, **info: Any) -> Fields:
    return assistant(name, created_ms, *parts, finish=None, **{"time": {"created": created_ms}, **info})


def text(value: str = "hello", name: str = "prt_text", **fields: Any) -> Fields:
    return {"id": name, "type": "text", "text": value, **fields}


def step_start(name: str = "prt_0") -> Fields:
    return {"id": name, "type": "step-start", "snapshot": "4b73b053"}


def tool(name: str = "prt_tool", tool_name: str = "bash", status: str = "completed", **state: Any) -> Fields:
    told = {
        "status": status,
        "input": {"command": "ls"},
        "output": "a.txt",
        "title": "ls",
        "metadata": {"exit": 0, "truncated": False},
        "time": {"start": CREATED_MS + 30, "end": CREATED_MS + 40},
        **state,
    }
    kept = {key: value for key, value in told.items() if value is not None}
    return {"id": name, "type": "tool", "tool": tool_name, "callID": f"call_{name}", "state": kept}


def task(child: str, name: str = "prt_task", **state: Any) -> Fields:
    return tool(name, "task", **{"metadata": {"sessionId": child}, **state})

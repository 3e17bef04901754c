"""What calls came to: summed in SQL as it is read message by message, whatever stands in the store."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.sources.opencode.rows import Usage
from app.sources.opencode.store import Store
from app.sources.opencode.usage import usage_of_messages
from tests.support import json_store, recorded, stores
from tests.support.snapshots import CREATED_MS, assistant, entry, snapshot, tool, user

USED = {"input": 4, "output": 3, "reasoning": 2, "cache": {"read": 6, "write": 1}}


def summed(found: list[Usage]) -> dict[tuple[str, ...], tuple[float, ...]]:
    """By what tells them apart."""
    sums: dict[tuple[str, ...], Counter[str]] = {}
    for one in found:
        of_it = sums.setdefault((one.session, one.turn, one.day, one.model, one.agent), Counter())
        for name in (
            "calls",
            "errors",
            "failed_tools",
            "input_tokens",
            "cache_read_tokens",
            "cache_write_tokens",
            "output_tokens",
        ):
            of_it[name] += getattr(one, name)
        of_it["cost"] += round(one.cost_usd * 1e9)
    return {key: tuple(of_it.values()) for key, of_it in sums.items()}


def one_by_one(store: Store) -> list[Usage]:
    (found,) = store._all(lambda rows: [*usage_of_messages(rows, 0)])
    return found


@pytest.mark.parametrize("name", recorded.exported())
def test_sql_sums_what_is_read_message_by_message(tmp_path: Path, name: str) -> None:
    store = Store(stores.put(tmp_path / "opencode.db", recorded.export(name)))
    assert summed(store.usage(0)) == summed(one_by_one(store))
    assert store.usage(0) or name == "e_sigint_run"


def test_json_files_are_summed_too(tmp_path: Path) -> None:
    name = "f_subagent"
    store = Store(stores.put(tmp_path / "opencode.db", recorded.export(name)))
    files = Store(json_store.put(tmp_path / "json", recorded.export(name)))
    assert summed(files.usage(0)) == summed(store.usage(0))


def call(name: str, at_ms: int = CREATED_MS + 20, **info: Any) -> dict[str, Any]:
    return assistant(name, at_ms, **{"tokens": USED, "cost": 0.5, "finish": "stop", **info})


def store_of(path: Path, *messages: dict[str, Any], **info: Any) -> Store:
    return Store(stores.put(path / "opencode.db", snapshot(entry(user(), *messages, **info))))


def test_tokens_are_told_apart_and_reasoning_is_output(tmp_path: Path) -> None:
    (one,) = store_of(tmp_path, call("msg_2")).usage(0)
    assert (one.input_tokens, one.cache_read_tokens, one.cache_write_tokens, one.output_tokens) == (4, 6, 1, 5)
    assert (one.turn, one.calls, one.errors, one.cost_usd) == ("msg_1", 1, 0, 0.5)


def test_calls_since_are_meant(tmp_path: Path) -> None:
    store = store_of(tmp_path, call("msg_2", CREATED_MS + 20), call("msg_3", CREATED_MS + 30))
    assert [one.calls for one in store.usage(CREATED_MS + 30)] == [1]
    assert [one.calls for one in store.usage(CREATED_MS + 20)] == [2]


def test_what_a_fork_has_copied_is_not_counted_again(tmp_path: Path) -> None:
    forked_ms = CREATED_MS + 3_600_000
    copied = f"msg_{(forked_ms * 4096) & ((1 << 48) - 1):012x}ABCDEFGHIJKLMN"
    info = {"time": {"created": forked_ms, "updated": forked_ms}}
    assert store_of(tmp_path, call(copied), **info).usage(0) == []
    # The clock was set back: it is older than its session, and was made when it says.
    own = f"msg_{((CREATED_MS + 20) * 4096) & ((1 << 48) - 1):012x}ABCDEFGHIJKLMN"
    assert [one.calls for one in store_of(tmp_path / "own", call(own), **info).usage(0)] == [1]


def test_a_failed_call_is_an_error_and_what_calls_nobody_is_no_call(tmp_path: Path) -> None:
    failed = call("msg_2", tokens={}, finish=None, error={"name": "APIError", "data": {}})
    shell = call("msg_3", tokens={}, finish=None, cost=0)
    found = store_of(tmp_path, failed, shell).usage(0)
    assert [(one.calls, one.errors) for one in found] == [(1, 1)]


def test_tools_that_failed_are_told_from_calls_that_did(tmp_path: Path) -> None:
    ran, failed = tool("prt_1"), tool("prt_2", status="error", error="no such file", output=None)
    store = store_of(tmp_path, assistant("msg_2", CREATED_MS + 20, ran, failed, tokens=USED, finish="tool-calls"))
    assert [(one.calls, one.errors, one.failed_tools) for one in store.usage(0)] == [(1, 0, 1)]
    assert summed(store.usage(0)) == summed(one_by_one(store))
    with closing(sqlite3.connect(tmp_path / "opencode.db")) as db, db:
        db.execute("update part set data = 'no JSON: \"error\"' where id = 'prt_2'")
    assert [one.failed_tools for one in store.usage(0)] == [0]


@pytest.mark.parametrize(
    "data",
    ["no JSON", "", '"assistant"', "[]", '{"role":"assistant"', '{"role":"assistant","tokens":"many","cost":[]}'],
)
def test_what_is_odd_costs_itself(tmp_path: Path, data: str) -> None:
    store = store_of(tmp_path, call("msg_2"), call("msg_3"))
    with closing(sqlite3.connect(tmp_path / "opencode.db")) as db, db:
        db.execute("update message set data = ? where id = 'msg_3'", (data,))
    assert [one.calls for one in store.usage(0)] == [1]


def test_odd_numbers_count_as_none(tmp_path: Path) -> None:
    odd = {"input": -4, "output": "x", "reasoning": None, "cache": 7}
    (one,) = store_of(tmp_path, call("msg_2", tokens=odd, cost="much", providerID=None)).usage(0)
    assert (one.input_tokens, one.output_tokens, one.cost_usd) == (0, 0, 0.0)
    assert json.dumps(one.model) != '"None"'


@pytest.mark.parametrize("kind", ["tables", "files"])
def test_some_sessions_are_asked_for_alone(tmp_path: Path, kind: str) -> None:
    name = "f_subagent"
    put = stores.put if kind == "tables" else json_store.put
    store = Store(put(tmp_path / "opencode.db", recorded.export(name)))
    every = store.heads()
    assert len(every) > 1
    for session in every:
        assert store.heads({session}) == {session: every[session]}
        assert store.usage(0, {session}) == [one for one in store.usage(0) if one.session == session]
    assert (store.heads(set()), store.usage(0, set())) == ({}, [])

"""A turn whose source is the same is not sent again: not for a new title, OpenCode or version of ours."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.capture.enqueue import Place, enqueue
from app.delivery.backoff import RetryPolicy
from app.delivery.deliver import DeliveryContext, deliver
from app.exporters.outcome import Outcome
from app.ledger.job import Body
from app.privacy.policy import Policy, Post
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.checkout import ROOT
from tests.support.ledger_bench import LedgerBench
from tests.support.recorded import Snapshot

CAPTURE = Capture(
    Policy("full", (), redact_secrets=True, prefix="/opencode"),
    Redaction.compile((), secrets=True, known_values=()),
    "",
)


def sent(bench: LedgerBench, snapshot: Snapshot) -> list[str]:
    """Enqueue and deliver; what kinds of records were posted for it."""
    enqueue(bench.db, parse(snapshot), CAPTURE, Place(bench.destination, ""), now_ms=bench.now_ms, wake=lambda _: None)
    posted: list[str] = []

    def post(_: object, body: Body) -> Outcome:
        record = json.loads(body.body)
        posted.append(
            record["providerRequest"]["json"].get("model", "tool")
            + " "
            + record["providerRequest"]["meta"]["Helicone-Session-Path"]
        )
        return Outcome("accepted", "ok", 200)

    context = DeliveryContext(
        destination_id=bench.destination,
        worker="w",
        policy=RetryPolicy(5, 1, 1),
        permit=lambda _: Post(),
        post=post,
        clock=lambda: bench.now_ms,
        dice=lambda: 0.5,
        stopping=lambda: False,
    )
    while waiting := keys(bench.db, "pending"):
        for one in waiting:
            deliver(bench.db, one, context)
    return posted


def keys(db: sqlite3.Connection, state: str) -> list[str]:
    return [row["key"] for row in db.execute("select key from job where state = ? order by id", (state,))]


def sessions(value: Snapshot) -> list[Snapshot]:
    return [session["info"] for session in value["sessions"]]


def titled(value: Snapshot) -> None:
    sessions(value)[0].update(title="another title")


def upgraded(value: Snapshot) -> None:
    sessions(value)[0].update(version="99.0.0", schema=7, cost=3, summary={"files": 1}, share={"url": "x"})


def moved(value: Snapshot) -> None:
    """Project metadata: not the folder, which names the session."""
    sessions(value)[0].update(projectID="another", workspaceID="w", slug="other", path="elsewhere")


def archived(value: Snapshot) -> None:
    sessions(value)[0]["time"].update(archived=2_000_000_000_000, updated=2_000_000_000_001)


def annotated(value: Snapshot) -> None:
    """Fields that OpenCode does not have yet, beside those that are read."""
    value["more"] = 1
    for session in value["sessions"]:
        session["more"] = {"a": 1}
        for message in session["messages"]:
            message["more"] = [1]


def reordered(value: Snapshot) -> None:
    text = json.dumps(value, sort_keys=True)
    value.clear()
    value.update(dict(reversed(list(json.loads(text).items()))))
    value["sessions"] = [dict(reversed(list(one.items()))) for one in value["sessions"]]


@pytest.mark.parametrize("change", [titled, upgraded, moved, archived, annotated, reordered])
@pytest.mark.parametrize("name", ["f_subagent", "g_admin", "b_tools"])
def test_only_the_sessions_own_record_follows_its_facts(
    bench: LedgerBench, name: str, change: Callable[[Snapshot], None]
) -> None:
    before, after = recorded.export(name), recorded.export(name)
    change(after)
    first = sent(bench, before)
    assert len(first) > 2
    again = sent(bench, after)
    own = f"opencode/session /opencode/{before['root']}"
    assert again == ([own] if change in {titled, upgraded, archived} else [])


@pytest.mark.parametrize("name", ["f_subagent", "g_admin", "b_tools"])
def test_a_field_that_a_newer_opencode_adds_to_every_message_sends_nothing_again(bench: LedgerBench, name: str) -> None:
    """The key is another one, for the source is; but Helicone has every record that it would make."""
    before, after = recorded.export(name), recorded.export(name)
    for session in after["sessions"]:
        for message in session["messages"]:
            message["info"]["introduced"] = "in 99.0.0"
    assert sent(bench, before)
    assert sent(bench, after) == []
    assert keys(bench.db, "superseded")


def test_a_subagents_title_sends_its_own_record_again_and_no_other(bench: LedgerBench) -> None:
    before, after = recorded.export("f_subagent"), recorded.export("f_subagent")
    sessions(after)[1].update(title="another title")
    sent(bench, before)
    (only,) = sent(bench, after)
    assert only.endswith(sessions(after)[1]["id"])


@pytest.mark.slow
def test_keys_are_the_same_under_another_version_and_another_hash_seed(tmp_path: Path) -> None:
    script = (
        "import sys, app; app.__version__ = sys.argv[1]\n"
        "from app.transcript.parse import parse; from tests.support import recorded\n"
        "from tests.capture.test_not_sent_again import CAPTURE; from app.transcript.model import key\n"
        "[print(key(t.digest, CAPTURE.policy.digest(''))) for t in parse(recorded.export('f_subagent')).turns]\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", script, version],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "HOME": str(tmp_path)},
            timeout=300,
        ).stdout
        for version, seed in (("0.1.0", "1"), ("99.0.0", "2"))
    }
    assert len(told) == 1
    assert told != {b""}

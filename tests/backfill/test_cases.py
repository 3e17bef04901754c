"""Sessions from the field, imported by the real command: what `cases/README.md` lists, and what must become of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.ledger import job as ledger_job
from app.ledger import pruning
from tests.support.checkout import DATA
from tests.support.processes import Station
from tests.support.typed_commands import typed

CASES = DATA / "cases"
SESSION = "ses_1a0000000ffeAAAAAAAAAAAAAA"
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ledger:
    """One person's machine, which files are imported into."""

    station: Station

    def take(self, *names: str | Path, code: int = 0, options: tuple[str, ...] = ()) -> list[Fields]:
        """What `import` says of each file."""
        paths = [str(CASES / f"{name}.json") if isinstance(name, str) else str(name) for name in names]
        done = typed(self.station, "import", *options, *paths, "--json")
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        told: list[Fields] = json.loads(done.stdout)["files"]
        return told

    def bodies(self, session: str = SESSION) -> dict[str, list[Fields]]:
        """What is to be posted for each turn, and for the session itself."""
        found: dict[str, list[Fields]] = {}
        with self.station.ledger() as db:
            for job in db.execute(
                "select j.id, j.key, t.name from job j join turn t on t.id = j.turn_id join session s"
                " on s.id = j.session_id where s.name = ? and j.state = 'pending' order by j.id",
                (session,),
            ).fetchall():
                found[job["name"]] = [json.loads(body.body) for body in ledger_job.bodies(db, job["id"], job["key"])]
        return found

    def status(self) -> str:
        return typed(self.station, "status", "-v").stdout

    def deliver(self) -> None:
        """As if all of it had been sent."""
        with self.station.ledger() as db:
            db.execute("update job set state = 'delivered', due_ms = null, finished_ms = 1, body_bytes = 0")
            db.execute("delete from bundle")
            db.execute("delete from record")


@pytest.fixture
def machine(tmp_path: Path) -> Ledger:
    home = tmp_path / "home"
    home.mkdir()
    return Ledger(Station(home, "http://127.0.0.1:9"))


def calls(bodies: list[Fields]) -> list[Fields]:
    """The LLM calls among a turn's bodies."""
    return [body for body in bodies if not request(body).get("model", "opencode/").startswith("opencode/")]


def request(body: Fields) -> Fields:
    told: Fields = body["providerRequest"]["json"]
    return told


def response(body: Fields) -> Fields:
    told: Fields = body["providerResponse"]["json"]
    return told


def tools(bodies: list[Fields]) -> list[Fields]:
    return [body for body in bodies if request(body).get("_type") == "tool"]


def usage_is_rounded(turn: list[Fields]) -> None:
    (call,) = calls(turn)
    assert response(call)["usage"]["prompt_tokens"] in {12, 13}
    assert response(call)["usage"]["completion_tokens"] == 3


def tool_is(name: str) -> Callable[[list[Fields]], None]:
    def check(turn: list[Fields]) -> None:
        (tool,) = tools(turn)
        assert request(tool)["toolName"] == name
        assert response(tool)["error"] == {"message": "Tool execution aborted"}

    return check


def output_is(text: str) -> Callable[[list[Fields]], None]:
    def check(turn: list[Fields]) -> None:
        (tool,) = tools(turn)
        assert response(tool)["message"] == text

    return check


def title_is_json(turn: list[Fields]) -> None:
    (tool,) = tools(turn)
    assert response(tool)["metadata"]["title"] == "404"


def times_are_rounded(turn: list[Fields]) -> None:
    (tool,) = tools(turn)
    start, end = tool["timing"]["startTime"], tool["timing"]["endTime"]
    assert (start["milliseconds"], end["milliseconds"]) == (30, 41)


def cost_is_void(turn: list[Fields]) -> None:
    (call,) = calls(turn)
    assert "cost" not in response(call)["usage"]


def failed_without_a_status(turn: list[Fields]) -> None:
    (call,) = calls(turn)
    assert (call["providerResponse"]["status"], response(call)["error"]["message"]) == (500, "x")


def failed_with_json(turn: list[Fields]) -> None:
    (call,) = calls(turn)
    assert response(call)["error"]["message"] == '{"code":1}'


def text_is_json(turn: list[Fields]) -> None:
    (call,) = calls(turn)
    assert response(call)["choices"][0]["message"]["content"] == '{"value":"x"}'


LONG_NAME = json.loads((CASES / "04-tool-name-600-chars.json").read_text())["messages"][3]["parts"][0]["tool"]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("01b-fractional-tokens", usage_is_rounded),
        ("03-empty-tool-name", tool_is("unknown")),
        ("04-tool-name-600-chars", tool_is(LONG_NAME[:512])),
        ("06-tool-output-object", output_is('{"content":[{"type":"text","text":"hi"}]}')),
        ("06b-tool-output-list", output_is('[{"type":"text","text":"hi"}]')),
        ("06d-tool-title-number", title_is_json),
        ("06e-fraction-time", times_are_rounded),
        ("06f-cost-string", cost_is_void),
        ("06h-error-status-string", failed_without_a_status),
        ("06i-error-message-object", failed_with_json),
        ("06n-text-is-object", text_is_json),
    ],
)
def test_an_odd_value_costs_itself_and_is_counted(
    machine: Ledger, name: str, check: Callable[[list[Fields]], None]
) -> None:
    (told,) = machine.take(name)
    bodies = machine.bodies()
    assert set(bodies) == {"session", "msg_1", "msg_3", "msg_5"}
    check(bodies["msg_3"])
    assert (told["new"], told["unreadable"]) == (4, 0)
    assert told["odd"] >= 1
    assert "messages[3]" in told["reason"]
    assert "odd values in what OpenCode stored" in machine.status()


def changed(path: Path, name: str, change: Callable[[Fields], object]) -> Path:
    value = json.loads((CASES / f"{name}.json").read_text())
    change(value["messages"][3])
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        pytest.param(lambda one: one["parts"][0].pop("state"), {"unreadable": 1}, id="tool without state"),
        pytest.param(lambda one: one["parts"].append(None), {"tool": 1, "unreadable": 1}, id="part null"),
        pytest.param(lambda one: one["info"].update(summary={"diffs": []}), {"tool": 1}, id="summary an object"),
        pytest.param(lambda one: one["parts"][0]["state"].update(error={"code": 1}), {"tool": 1}, id="error object"),
        pytest.param(
            lambda one: one["info"]["tokens"].update(input=1e20), {"tool": 1}, id="more tokens than there are"
        ),
        pytest.param(lambda one: one.update(parts=None), {}, id="no parts"),
    ],
)
def test_an_unreadable_part_is_named_among_the_parts(
    machine: Ledger, tmp_path: Path, change: Callable[[Fields], object], kinds: Fields
) -> None:
    (told,) = machine.take(changed(tmp_path / "odd.json", "06-tool-output-object", change))
    bodies = machine.bodies()
    assert set(bodies) == {"session", "msg_1", "msg_3", "msg_5"}
    (call,) = calls(bodies["msg_3"])
    assert response(call)["parts"] == kinds
    assert told["odd"] >= 1


def test_an_unreadable_message_costs_its_turn_and_is_counted(machine: Ledger) -> None:
    value = json.loads((CASES / "06l-role-system.json").read_text())
    assert [message["info"]["role"] for message in value["messages"]].count("system") == 1
    (told,) = machine.take("06l-role-system", code=1)
    assert set(machine.bodies()) == {"session", "msg_1"}
    assert told["unreadable"] == 1
    assert "role: neither user nor assistant" in told["reason"]
    assert f"turns that could not be read of session {SESSION}: 1" in machine.status()
    machine.take("06l-role-system", code=1)
    assert f"turns that could not be read of session {SESSION}: 1" in machine.status()


BANNER = "[plugin] loaded {2} of {3}\n"


@pytest.mark.parametrize("before", ["", BANNER, "Exporting session: x", BANNER + "Exporting session: x\n"])
@pytest.mark.parametrize("behind", ["", "\nDone exporting.\n", "\nDone {1}.\n"])
def test_lines_around_the_json_are_skipped_with_a_note(
    machine: Ledger, tmp_path: Path, before: str, behind: str
) -> None:
    text = (CASES / "15-full.json").read_text()
    path = tmp_path / "export.json"
    path.write_text(f"{before}{text}{behind}")
    (told,) = machine.take(path)
    assert set(machine.bodies()) == {"session", "msg_1"}
    assert ("skipped" in told["reason"]) is bool(before or behind)


@pytest.mark.parametrize("name", ["02-status-line-before-json", "31-trailing-log-line"])
def test_reported_files_with_such_lines_are_taken(machine: Ledger, name: str) -> None:
    (told,) = machine.take(name)
    assert set(machine.bodies()) == {"session", "msg_1"}
    assert "skipped" in told["reason"]


def test_a_file_that_was_cut_is_no_export_of_what_is_left(machine: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text((CASES / "15-full.json").read_text()[:-20])
    (told,) = machine.take(path, code=1)
    assert "it is not JSON at line" in told["reason"]


def test_an_export_of_opencode_2_is_taken(machine: Ledger) -> None:
    (told,) = machine.take("08-opencode2-export")
    assert (told["new"], told["odd"], told["unreadable"]) == (2, 0, 0)


@pytest.mark.parametrize(
    ("name", "turns"),
    [("09-message-older-than-session", {"msg_1", "msg_3"}), ("09c-session-created-after-everything", {"msg_1"})],
)
def test_a_message_older_than_its_session_is_no_copy_by_itself(machine: Ledger, name: str, turns: set[str]) -> None:
    machine.take(name)
    assert set(machine.bodies()) == {"session", *turns}


def test_subtasks_retries_and_files_of_the_assistant_are_shown(machine: Ledger) -> None:
    machine.take("13-rare-parts")
    turn = machine.bodies()["msg_1"]
    (call,) = calls(turn)
    assert request(call)["messages"] == [{"role": "user", "content": "survey the repo"}]
    assert "survey the repo" in json.dumps(turn[0])
    assert response(call)["choices"][0]["message"]["content"] == "ok\n\n[image/png]"
    assert response(call)["retries"] == [
        {"attempt": 1, "status": 529, "error": {"message": "overloaded", "type": "APIError"}}
    ]
    assert response(call)["parts"] == {
        "retry": 1, "snapshot": 1, "text": 1, "file": 1, "patch": 1, "future-kind": 1,
    }  # fmt: skip


def test_placeholders_do_not_replace_the_texts_of_a_session_that_is_known(machine: Ledger) -> None:
    machine.take("15-full")
    before = machine.bodies()
    (told,) = machine.take("15-sanitized", code=1)
    assert "--sanitized" in told["reason"]
    assert machine.bodies() == before
    (told,) = machine.take("15-sanitized", options=("--sanitized",))
    assert told["new"] == 2


def test_a_sanitized_export_of_an_unknown_session_is_taken(machine: Ledger) -> None:
    (told,) = machine.take("15-sanitized")
    assert told["new"] == 2


def test_no_base64_leaves(machine: Ledger) -> None:
    machine.take("19-base64")
    value = json.loads((CASES / "19-base64.json").read_text())
    state = value["messages"][1]["parts"][0]["state"]
    sent = json.dumps(machine.bodies())
    assert state["metadata"]["image"][:100] not in sent
    assert state["attachments"][0]["url"][:100] not in sent


FORK = "ses_0f0000000ffeDDDDDDDDDDDDDD"


@pytest.mark.parametrize("order", [("22-origin", "22-fork"), ("22-fork", "22-origin")], ids=" ".join)
def test_what_a_fork_has_copied_is_left_to_its_origin(machine: Ledger, order: tuple[str, str]) -> None:
    told = {one["session"]: one for one in machine.take(*order)}
    assert set(machine.bodies()) == {"session", "msg_1"}
    assert set(machine.bodies(FORK)) == {"session", "msg_f3"}
    assert (told[FORK]["new"], told[FORK]["copied"]) == (2, 1)


def test_what_a_fork_has_copied_counts_also_when_its_origin_is_delivered(machine: Ledger) -> None:
    machine.take("22-origin")
    machine.deliver()
    machine.take("22-fork")
    assert set(machine.bodies(FORK)) == {"session", "msg_f3"}


def test_a_copy_is_exported_with_the_fork_where_its_origin_never_was(machine: Ledger) -> None:
    machine.take("22-fork")
    assert set(machine.bodies(FORK)) == {"session", "msg_f1", "msg_f3"}


def test_a_copy_is_exported_with_the_fork_where_its_origin_was_deleted_before(machine: Ledger) -> None:
    machine.take("22-origin")
    with machine.station.ledger() as db:
        assert pruning.drop_session(db, 1, SESSION, 1) == 2
    machine.take("22-fork")
    assert set(machine.bodies(FORK)) == {"session", "msg_f1", "msg_f3"}
    (told,) = machine.take("22-fork")
    assert told["known"] == 3


def test_parts_stand_in_the_order_in_which_they_were_made(machine: Ledger) -> None:
    machine.take("28b-parts-across-the-wrap")
    (turn,) = [bodies for name, bodies in machine.bodies().items() if name != "session"]
    (call,) = calls(turn)
    assert response(call)["choices"][0]["message"]["content"] == "said first\n\nsaid last"


def test_the_question_comes_before_its_answers_whatever_the_clock_said(machine: Ledger) -> None:
    machine.take("29-clock-steps-back-inside-a-turn")
    turn = machine.bodies()["msg_1"]
    first, *_ = calls(turn)
    assert request(first)["messages"] == [{"role": "user", "content": "question one"}]
    paths = [body["providerRequest"]["meta"]["Helicone-Session-Path"].rsplit("/", 1)[1] for body in turn]
    assert paths == ["msg-2", "msg-0", "tool-bash", "msg-1"]


def test_parts_without_ids_are_read(machine: Ledger) -> None:
    (told,) = machine.take("32-old-parts-without-ids")
    bodies = machine.bodies("ses_7c0000000ffeEEEEEEEEEEEEEE")
    assert "hi" in json.dumps(bodies["msg_1"])
    assert told["unreadable"] == 0

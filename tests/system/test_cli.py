"""The command line as a person and a script meet it: real processes, real files, a real receiver on loopback."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from huey.consumer_options import ConsumerConfig, OptionParserHandler

from app.capture.targets import folder
from app.cli import main
from app.cli.options import DONE, PROBLEM, STOPPED, UNREAD, USAGE
from app.database.schema import migrations
from app.ledger import claims, destinations, flow, folders, incidents, notices
from app.ledger.job import FailedAttempt
from app.runtime import clock
from app.runtime.liveness import Announced, present
from app.runtime.spool import Spool
from app.runtime.url import normalise
from app.sources.opencode.store import store_file
from app.worker import CONSUMER
from tests.sources.opencode.test_store import built
from tests.support.checkout import ROOT
from tests.support.processes import PROJECT, Station, worker
from tests.support.recorded import export, export_files
from tests.support.servers import Receiver, answer, nobody, receiving, scripted
from tests.support.snapshots import assistant, session, text, unfinished, user
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until

CANARY = "canary-in-the-transcript"
SIMPLE = "a_simple"
NOTHING_ODD = {"superseded": 0, "off": 0, "shut": 0, "copied": 0, "odd": 0, "unreadable": 0}
JOBS = 2
"""Of that recording, as of most others: its turn and its session."""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path) -> Station:
    """A machine without a receiver: for what sends nothing."""
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


def files(*names: str) -> list[str]:
    return [str(path) for name in names for path in export_files(name)]


def said(process: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """What a command with --json said."""
    assert process.returncode == code, process.stderr
    return json.loads(process.stdout)


def complaint(process: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of an expected failure."""
    assert process.returncode == code, (process.returncode, process.stdout, process.stderr)
    (line,) = process.stderr.splitlines()
    assert line.startswith("opencode-helicone: ")
    return line


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(path)


@contextmanager
def running(station: Station, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        env=station.environ,
        cwd=station.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [True, False], ids=["a notice", "nothing"])
def test_the_hook_loads_no_http_client_no_terminal_and_no_command_line(station: Station, *, said: bool) -> None:
    line = {"v": 2, "n": 1, "type": "notice", "session": "ses_1", "directory": PROJECT, "why": "busy", "options": {}}
    script = (
        "import json, sys; sys.argv = ['app', 'hook']\n"
        "from app.__main__ import main\n"
        "main()\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=station.environ,
        input=json.dumps(line) + "\n" if said else "",
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(process.stdout.splitlines()[-1])
    assert ("app.capture.handler" in loaded) == said
    heavy = {
        "app.cli.main",
        "app.exporters.helicone.client",
        "app.worker",
        "httpx",
        "rich",
        "starlette",
        "typer",
        "uvicorn",
    }
    assert not heavy.intersection(loaded)


def test_a_command_is_found_in_its_family_alone() -> None:
    for family, commands in main.FAMILIES.items():
        alone = typer.main.get_command(main.command_line([commands[0]])).commands  # type: ignore[attr-defined]  # a group
        assert tuple(alone) == tuple(commands), family


def test_version_is_printed(station: Station) -> None:
    process = typed(station, "--version")
    assert (process.returncode, process.stdout) == (0, "opencode-helicone 0.2.0\n")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["import"], ["flush", "--timeout", "soon"]],
    ids=["command", "no file", "no number"],
)
def test_wrong_arguments_end_with_2_and_say_how_it_goes(station: Station, arguments: list[str]) -> None:
    process = typed(station, *arguments)
    assert process.returncode == 2
    assert "Usage: opencode-helicone" in process.stderr
    assert process.stdout == ""


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OPENCODE_HELICONE_MAX_RETRIES": "many"}, ["maxRetries", '"many"', "environment"]),
        ({"HELICONE_ENDPOINT": "ftp://host"}, ["endpoint", "ftp://host", "environment"]),
        ({"OPENCODE_HELICONE_REDACT_PATTERNS": '["fine", "(open"]'}, ["pattern 2", "(open"]),
    ],
    ids=["number", "endpoint", "pattern"],
)
def test_wrong_settings_end_with_2_and_are_named(station: Station, variables: dict[str, str], named: list[str]) -> None:
    line = complaint(replace(station, variables=variables).run("import", *files(SIMPLE)), 2)
    assert all(word in line for word in named)


def test_a_ledger_that_cannot_be_used_ends_with_1_and_one_line(station: Station) -> None:
    (station.spool / "ledger.db").mkdir(parents=True, mode=0o700)
    station.spool.chmod(0o700)
    assert "ledger.db" in complaint(typed(station, "status"), 1)
    (station.spool / "ledger.db").rmdir()
    with station.ledger() as db:
        db.execute("pragma user_version = 99")
    assert "99" in complaint(typed(station, "migrate"), 1)
    assert "/proc/not-there" in complaint(typed(station, "migrate", "--spool-directory", "/proc/not-there/x"), 1)


def test_a_reader_that_leaves_early_hears_nothing_more(station: Station) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with closing(os.fdopen(writing, "wb")) as closed:
        process = subprocess.run(
            [sys.executable, "-m", "app", "config", "show"],
            env=station.environ,
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (process.returncode, process.stderr) == (UNREAD, b"")


def test_procfile_says_what_the_worker_command_does() -> None:
    (line,) = (ROOT / "Procfile").read_text("utf-8").splitlines()
    process_type, command = line.split(": ", 1)
    program, instance, *arguments = shlex.split(command)
    assert (process_type, program, instance) == ("worker", "huey_consumer", "app.worker.huey")
    parsed, rest = OptionParserHandler().get_option_parser().parse_args(arguments)
    assert rest == []
    values = ConsumerConfig(**vars(parsed)).values
    # There are no periodic tasks; the shortest command line leaves huey's looking for some as it is.
    assert {name: values[name] for name in CONSUMER if name != "periodic"} == {
        name: value for name, value in CONSUMER.items() if name != "periodic"
    }


# --- docs/commands.md ------------------------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    """The page's text for each command."""
    found = {}
    for part in (ROOT / "docs" / "commands.md").read_text("utf-8").split("\n## ")[1:]:
        heading, body = part.split("\n", 1)
        for name in re.findall("`([^`]+)`", heading):
            found[name.split(" FILE")[0]] = body
    return found


def commands() -> dict[str, Any]:
    """Every command by its full name."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for inner, one in command.commands.items():
            yield from below(f"{name} {inner}".strip(), one)

    return dict(below("", typer.main.get_command(main.command_line([]))))


def example(command: str) -> Any:
    """The page's JSON for a command."""
    (found,) = re.findall(r"```json\n(.*?)```", sections()[command], re.DOTALL)
    return json.loads(found)


OPEN = {"body", "dead_at_centre", "dropped_by_reason", "folder_limits", "hits", "identity_hits"}
"""Objects whose keys are not fixed."""


def shape(value: Any) -> Any:
    """The keys of a JSON value, all the way down; a list by its first element."""
    if isinstance(value, dict):
        return {key: None if key in OPEN else shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value[:1]] if isinstance(value, list) else None


def test_every_command_has_help_and_stands_in_the_docs() -> None:
    assert set(sections()) >= set(commands())
    assert all(command.help for command in commands().values())


@pytest.mark.parametrize("name", sorted(commands()))
def test_docs_name_exactly_the_options_that_help_shows(name: str) -> None:
    shown = {
        option
        for param in commands()[name].params
        if param.param_type_name == "option" and not getattr(param, "hidden", False)
        for option in param.opts
        if option.startswith("--")
    } - {"--help"}
    options = re.search(r"^Options: (.*?)\n\n", sections()[name], re.DOTALL | re.MULTILINE)
    assert set(re.findall("--[a-z-]+", options[1] if options else "")) == shown


def test_docs_name_every_exit_code() -> None:
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    codes = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert codes == [str(code) for code in (DONE, PROBLEM, USAGE, STOPPED, UNREAD)]


# --- import ----------------------------------------------------------------------------------------------------------


def test_import_takes_each_turn_once_and_starts_no_worker(station: Station) -> None:
    first = said(typed(station, "import", "--json", *files(SIMPLE)))
    again = typed(station, "import", *files(SIMPLE))
    assert first["jobs"] == {"new": JOBS, "known": 0, **NOTHING_ODD}
    assert shape(first) == shape(example("import"))
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.endswith(f": {JOBS} known\n")
    assert station.counts().pending == JOBS
    assert present(station.spool / "workers") == []


def test_import_from_8_processes_at_once_makes_one_job_each(
    station: Station, at_once: Callable[[str, int, list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HELICONE_API_KEY", "HELICONE_ENDPOINT", "OPENCODE_HELICONE_SPOOL_DIRECTORY"):
        monkeypatch.setenv(name, station.environ[name])
    script = (
        "import os, sys\n"
        "from app.backfill.import_files import import_files\n"
        "from app.sources.opencode.export_files import File\n"
        "from app.settings.lookup import unattended\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "results = list(import_files([File(name) for name in sys.argv[1:]], unattended(os.environ)))\n"
        "assert all(one.new + one.known == 2 for one in results), results\n"
    )
    at_once(script, 8, files(SIMPLE, "b_tools"))
    assert station.counts().pending == 2 * JOBS


def test_subagents_hang_under_their_parent_when_it_is_in_the_set(station: Station, receiver: Receiver) -> None:
    parent, child = files("f_subagent")
    here = replace(station, endpoint=receiver.url)
    alone = said(here.run("import", "--json", child))
    assert [one["outcome"] for one in alone["files"]] == ["imported"]
    together = said(here.run("import", "--json", child, parent))
    root, below = together["files"]
    assert (root["outcome"], root["new"], below["outcome"]) == ("imported", JOBS, "inside")
    again = said(here.run("import", "--json", child))["files"][0]
    assert again["outcome"] == "inside"
    assert root["session"] in again["reason"]
    assert here.run("flush").returncode == 0
    prefix = f"/opencode/{root['session']}"
    assert {row.path.startswith(prefix) for row in receiver.rows()} == {True}
    assert f"{prefix}/msg-1/tool-task/{below['session']}" in [row.path for row in receiver.rows()]


def test_a_file_that_cannot_be_used_is_named_and_the_others_are_imported(station: Station, tmp_path: Path) -> None:
    whole = json.dumps({"info": session(), "messages": [user("msg_1", 1, text(CANARY))]})
    broken = {
        "missing.json": None,
        "empty.json": "",
        "cut.json": whole[:-3],
        "cut-by-a-pipe.json": (whole[:-2] + " " * 65536)[:65536],
        "other.json": json.dumps([CANARY]),
        "shape.json": json.dumps({"info": {"title": CANARY}, "messages": [{"info": CANARY, "parts": []}]}),
        "bytes.json": whole.replace("a title", "\udcff"),
        "deep.json": "[" * 200_000,
    }
    for name, content in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    names = [str(tmp_path / name) for name in broken]
    process = typed(station, "import", *names, str(tmp_path), *files(SIMPLE))
    assert process.returncode == 1
    lines = process.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == [*names, str(tmp_path)]
    assert "when it goes to a pipe" in lines[3]
    assert "when it goes to a pipe" not in lines[2]
    assert CANARY not in process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    assert station.counts().pending == JOBS


def test_of_two_files_of_one_session_the_newer_one_counts(station: Station, tmp_path: Path) -> None:
    turns = [user("msg_1", 1_000_010), assistant("msg_2", 1_000_020)]
    more = [user("msg_3", 2_000_000), assistant("msg_4", 2_000_010, parent="msg_3")]
    older = {"info": session(), "messages": turns}
    newer = {"info": session(time={"created": 1_000_000, "updated": 2_000_110}), "messages": [*turns, *more]}
    names = [written(tmp_path / "new.json", newer), written(tmp_path / "old.json", older)]
    told = said(typed(station, "import", "--json", *names))
    assert [(Path(one["file"]).name, one["outcome"], one["new"]) for one in told["files"]] == [
        ("old.json", "doubled", 0),
        ("new.json", "imported", 3),
    ]


def test_import_reads_standard_input_and_takes_what_never_ended_as_interrupted(station: Station) -> None:
    content = {"info": session(), "messages": [user("msg_1", 1_000_010), unfinished("msg_2", 1_000_020)]}
    process = station.run("import", "--json", "-", stdin=json.dumps(content))
    assert said(process)["files"][0] | {"reason": ""} == {
        "file": "-",
        "session": "ses_root",
        "outcome": "imported",
        "reason": "",
        "new": JOBS,
        "known": 0,
        **NOTHING_ODD,
    }


def test_off_notes_turns_without_content_and_a_later_import_does_not_take_them(station: Station) -> None:
    off = typed(station, "import", "--export-mode", "off", *files(SIMPLE))
    assert off.returncode == 0
    assert "export mode is off (command line)" in off.stdout
    assert station.counts().dropped_by_reason == {"off": JOBS}
    assert station.counts().body_bytes == 0
    assert said(typed(station, "import", "--json", *files(SIMPLE)))["jobs"]["shut"] == JOBS
    assert said(typed(station, "status", "--json"))["dropped_by_reason"] == {"off": JOBS}


def test_the_options_last_seen_for_a_folder_count(station: Station) -> None:
    """What live capture of the folder would not have sent, import does not send either."""
    with station.ledger() as db:
        there = destinations.destination(db, "https://example.invalid", "other", 1).id
        folders.remember_folder(db, folder(db, PROJECT), there, {"enable": False}, 1)
        folders.remember_folder(db, folder(db, "/home/dev/other"), there, {"exportMode": "metadata_only"}, 1)
    disabled = typed(station, "import", *files(SIMPLE))
    assert disabled.returncode == 0
    assert "enable is false" in disabled.stdout
    assert sum(jobs_of(station).values()) == 0
    other = {"info": session(directory="/home/dev/other"), "messages": [user("msg_1", 1_000_010, text(CANARY))]}
    path = written(station.home / "other.json", other)
    previewed = typed(station, "preview", "--json", path)
    assert CANARY not in previewed.stdout
    assert said(previewed)["sessions"][0]["mode"] == "metadata_only"
    assert said(typed(station, "import", "--json", path))["jobs"]["new"] == JOBS
    # Nor does what stands on the command line loosen it.
    assert CANARY not in typed(station, "preview", "--export-mode", "full", path).stdout


def jobs_of(station: Station) -> dict[str, int]:
    """Jobs by state."""
    counts = station.counts()
    return {name: getattr(counts, name) for name in ("pending", "delivered", "dead", "superseded", "dropped")}


@pytest.mark.parametrize("times", [25, 2], ids=["long", "short"])
def test_a_progress_bar_is_shown_when_a_person_watches_long_work(station: Station, times: int) -> None:
    content = {"info": session(), "messages": [user("msg_1", 1_000_010), assistant("msg_2", 1_000_020)]}
    path = written(station.home / "s.json", content)
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as screen:
        shown: list[bytes] = []
        reader = threading.Thread(target=read_all, args=(screen, shown))
        reader.start()
        with closing(os.fdopen(theirs, "wb", buffering=0)) as terminal:
            process = subprocess.run(
                [sys.executable, "-m", "app", "import", *[path] * times],
                env={**station.environ, "TERM": "xterm"},
                stdout=subprocess.PIPE,
                stderr=terminal,
                text=True,
                check=True,
            )
        reader.join(20)
    assert (b"importing" in b"".join(shown)) is (times > 2)
    assert "importing" not in process.stdout
    assert len(process.stdout.splitlines()) == times


def read_all(stream: Any, into: list[bytes]) -> None:
    try:
        while chunk := stream.read(65536):
            into.append(chunk)
    except OSError:  # how Linux says that a terminal's other end is closed
        return


# --- preview ---------------------------------------------------------------------------------------------------------


def test_preview_of_a_session_that_is_not_there_says_so(station: Station) -> None:
    store = store_file(station.environ)
    store.parent.mkdir(parents=True)
    built(store, export("a_simple"))
    assert complaint(typed(station, "preview", "nope"), 1).endswith(f"{store} holds no session nope")
    assert "No such file" in typed(station, "preview", "nope.json").stderr


def test_preview_prints_exactly_what_import_then_sends_and_writes_nothing(station: Station, receiver: Receiver) -> None:
    patterns = {"OPENCODE_HELICONE_REDACT_PATTERNS": '["[a-z]+@[a-z.]+"]'}
    here = replace(station, endpoint=receiver.url, variables=patterns)
    names = files("f_subagent", "b_tools")
    with_emails = written(station.home / "secrets.json", only_entry(export("j_unicode_secrets")))
    previewed = said(here.run("preview", "--json", *names, with_emails))
    assert shape(previewed) == shape(example("preview"))
    assert sum(jobs_of(here).values()) == 0
    with here.ledger() as db:
        assert destinations.destinations(db) == []
    assert here.run("import", *names, with_emails).returncode == 0
    assert here.run("flush").returncode == 0
    bodies = [record["body"] for one in previewed["sessions"] for record in one["records"]]
    assert ordered(bodies) == ordered([json.loads(line) for line in receiver.wire().split(b"\n")])
    hits = {name: number for one in previewed["sessions"] for name, number in one["hits"].items()}
    assert hits["pattern 1"] == 2
    assert len(hits) > 1


def only_entry(snapshot: dict[str, Any]) -> Any:
    (only,) = snapshot["sessions"]
    return {"info": only["info"], "messages": only["messages"]}


def ordered(values: list[Any]) -> list[str]:
    return sorted(json.dumps(value, sort_keys=True) for value in values)


def test_preview_says_which_patterns_match_what_is_not_redacted(station: Station) -> None:
    here = replace(station, variables={"OPENCODE_HELICONE_REDACT_PATTERNS": '["nothing like it", "^ses_"]'})
    process = here.run("preview", *files(SIMPLE))
    assert process.returncode == 0
    assert "NOT redacted, matches an id or a name: pattern 2" in process.stdout
    assert "pattern 1" not in process.stdout


def test_preview_says_why_nothing_would_leave(station: Station) -> None:
    off = said(typed(station, "preview", "--json", "--export-mode", "off", *files(SIMPLE), "no.json"), 1)
    assert [set(one) for one in off["sessions"]] == [{"file", "session", "outcome", "reason"}] * 2
    assert [one["outcome"] for one in off["sessions"]] == ["failed", "disabled"]
    assert "opencode.db is not there" in complaint(typed(station, "preview", "ses_dfd0c4cf4ffedrfrcrRE7VEskL"), 1)


def test_what_a_transcript_holds_cannot_steer_the_terminal(station: Station) -> None:
    content = {"info": session(), "messages": [user("msg_1", 1_000_010, text("\x1b]0;title\x07 \x9b31m \u202e"))]}
    name = written(station.home / "\x1b[31mred.json", content)
    process = typed(station, "preview", name)
    assert process.returncode == 0
    assert not set(process.stdout) & {"\x1b", "\x07", "\x9b", "\u202e"}


# --- flush and worker ------------------------------------------------------------------------------------------------


def test_flush_delivers_by_itself_when_no_worker_is_there(station: Station, receiver: Receiver) -> None:
    here = replace(station, endpoint=receiver.url)
    assert here.run("import", *files(SIMPLE, "b_tools")).returncode == 0
    told = said(here.run("flush", "--json"))
    assert told["jobs"]["delivered"] == 2 * JOBS
    assert shape(told) == shape(example("flush"))
    assert here.delivered(2 * JOBS)
    assert {row.sends for row in receiver.rows()} == {1}
    assert present(here.spool / "workers") == []


def test_flush_takes_over_what_was_captured_without_a_key(station: Station, receiver: Receiver) -> None:
    here = replace(station, endpoint=receiver.url)
    assert replace(here, key="").run("import", *files(SIMPLE)).returncode == 0
    keyless = replace(here, key="").run("flush")
    assert keyless.returncode == 1
    assert "no HELICONE_API_KEY" in keyless.stdout
    assert here.run("flush").returncode == 0
    assert here.delivered(JOBS)


def test_flush_gives_up_in_time_and_says_what_is_left(station: Station) -> None:
    with nobody() as url:
        here = replace(station, endpoint=url)
        assert here.run("import", *files(SIMPLE)).returncode == 0
        told = said(here.run("flush", "--json", "--timeout", "1"), 1)
    assert told["jobs"]["pending"] == JOBS
    assert "paused" in told["waiting"][0]
    assert not told["was_stopped"]


def test_flush_has_a_paused_destination_tried_at_once(station: Station, receiver: Receiver) -> None:
    here = replace(station, endpoint=receiver.url)
    with worker(here):
        assert here.run("import", *files(SIMPLE)).returncode == 0
        wait_until(lambda: here.delivered(JOBS))
        with here.ledger() as db:
            (ours,) = destinations.destinations(db)
            now_ms = clock.now_ms()
            flow.pause(
                db, ours.id, health="refused", reason="401: error", count=1, probe_ms=now_ms + 3_600_000, now_ms=now_ms
            )
        assert here.run("import", *files("b_tools")).returncode == 0
        assert here.run("flush").returncode == 0
        assert here.delivered(2 * JOBS)


def test_flush_waits_for_what_a_live_hook_has_not_worked_off(station: Station) -> None:
    assert typed(station, "status").returncode == 0
    hook = Announced(Spool(station.spool).hooks)
    try:
        hook.say({"sessions": [], "backlog": 3})
        assert said(typed(station, "flush", "--json", "--timeout", "0.2"), 1)["backlog"] == 1
        with station.ledger() as db:
            (ours,) = destinations.destinations(db)
        hook.say({"destination": ours.id + 1, "sessions": [], "backlog": 3})
        assert typed(station, "flush").returncode == 0
        hook.say({"destination": ours.id, "sessions": [], "backlog": 3})
        with running(station, "flush", "--json", "--timeout", "60") as process:
            wait_until(lambda: process.poll() is not None or is_sleeping(process.pid))
            assert process.poll() is None
            hook.say({"destination": ours.id, "sessions": [], "backlog": 0})
            assert process.wait(300) == 0
    finally:
        hook.withdraw()


def is_sleeping(pid: int) -> bool:
    """Whether a process has all it needs and waits; anything that has started goes where /proc is not there."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_flush_that_is_interrupted_ends_with_130(station: Station, number: signal.Signals) -> None:
    with scripted(answer(503)) as server:
        here = replace(station, endpoint=server.url, variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "60000"})
        assert here.run("import", *files(SIMPLE)).returncode == 0
        with running(here, "flush", "--timeout", "60") as process:
            wait_until(lambda: here.counts().retrying)
            process.send_signal(number)
            assert process.wait(300) == 130
    assert here.counts().in_flight == 0


def test_worker_delivers_until_it_is_told_to_stop(station: Station, receiver: Receiver) -> None:
    here = replace(station, endpoint=receiver.url)
    with running(here, "worker") as process:
        wait_until(lambda: present(here.spool / "workers"))
        assert here.run("import", *files(SIMPLE)).returncode == 0
        assert here.run("flush").returncode == 0
        assert here.delivered(JOBS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    assert present(here.spool / "workers") == []


# --- status, settings, the rest --------------------------------------------------------------------------------------


def test_status_tells_all_there_is_and_writes_nothing(station: Station) -> None:
    assert typed(station, "import", *files(SIMPLE, "b_tools")).returncode == 0
    spool = Spool(station.spool)
    with station.ledger() as db:
        (ours,) = destinations.destinations(db)
        claimed = claims.claim(db, ours.id, key_of(station), worker="w", now_ms=clock.now_ms() + 1, lease_ms=60_000)
        assert claimed is not None
        due_ms = clock.now_ms() + 3_600_000
        failed = FailedAttempt(1, "500: empty body", 500)
        claims.retry_later(db, claimed, failed, delay_ms=due_ms - 1, is_charged=True)
        flow.pause(
            db, ours.id, health="refused", reason="401: error", count=1, probe_ms=clock.now_ms() + 12_000, now_ms=1
        )
        incidents.refuse(db, "not JSON", 1_000)
        incidents.note(db, "ledger: damaged, set aside and recovered", 1_000)
        notices.note_notice(db, "store", "ses_1", "here", 1_000)
        notices.note_wait(db, "store", ["ses_1"], "OpenCode's store cannot be read")
    hook, other = Announced(spool.hooks), Announced(spool.workers)
    try:
        hook.say({"destination": ours.id, "sessions": ["ses_1", "ses_2"], "backlog": 0})
        other.say({"destination": ours.id, "automatic": True, "version": "x"})
        with station.ledger() as db:
            before = "\n".join(db.iterdump())
            told = said(typed(station, "status", "--json"))
            lines = typed(station, "status", "-v").stdout
            assert "\n".join(db.iterdump()) == before
    finally:
        hook.withdraw()
        other.withdraw()
    shown = example("status")
    assert shape(told) == shape({**shown, "last_delivery": None, "elsewhere": []})
    assert "noted: ledger: damaged, set aside and recovered: 1" in lines
    assert re.search(r"^unread: 1 session, noticed since .*: OpenCode's store cannot be read$", lines, re.MULTILINE)
    assert told["jobs"] == {"pending": 2 * JOBS, "delivered": 0, "dead": 0, "superseded": 0, "dropped": 0}
    assert told["held_bytes"] > 0
    assert told["spool_bytes"] > told["held_bytes"]
    (here,) = told["destinations"]
    assert (here["current"], here["endpoint"], here["retrying"]) == (True, normalise(station.endpoint), 1)
    assert here["errors"] == [{"state": "pending", "error": "500: empty body", "jobs": 1}]
    assert told["hooks"] == [{"destination": ours.id, "sessions": 2, "backlog": 0}]
    assert told["workers"] == [{"destination": ours.id, "automatic": True}]
    assert "paused, next try in" in told["waiting"][0]
    for word in ("401: error", "500: empty body", "not JSON", "live hooks: 1", "live workers: 1 (1 automatic)"):
        assert word in lines
    assert station.key not in lines + json.dumps(told)


def key_of(station: Station) -> str:
    with station.ledger() as db:
        return str(db.execute("select key from job order by id limit 1").fetchone()[0])


def test_a_spool_that_cannot_be_made_is_named_in_plain_words(station: Station) -> None:
    spool = station.home / ("x" * 300)
    done = typed(station, "status", "--spool-directory", str(spool))
    assert done.returncode == 1
    assert done.stderr.startswith(f"opencode-helicone: {spool}")
    assert done.stderr.endswith(": File name too long\n")


def test_status_makes_no_destination(station: Station) -> None:
    assert said(typed(station, "status", "--json"))["is_new"]
    assert typed(station, "migrate").returncode == 0
    told = said(typed(station, "status", "--json"))
    assert not told["is_new"]
    assert [(one["id"], one["current"]) for one in told["destinations"]] == [(None, True)]
    with station.ledger() as db:
        assert destinations.destinations(db) == []
    assert {path.stat().st_mode & 0o077 for path in (station.spool, *station.spool.iterdir())} == {0}


def test_status_names_why_jobs_wait(station: Station) -> None:
    assert replace(station, key="").run("import", *files(SIMPLE)).returncode == 0
    other = replace(station, endpoint="http://127.0.0.1:10")
    assert other.run("import", *files("b_tools")).returncode == 0
    assert "no worker runs" in said(other.run("status", "--json"))["waiting"][0]
    waiting = said(typed(station, "status", "--json"))["waiting"]
    assert any("captured without a key" in reason for reason in waiting)
    assert any("http://127.0.0.1:10" in reason and "another destination" in reason for reason in waiting)


def test_config_show_names_each_origin_and_never_the_key(station: Station) -> None:
    own = station.home / "config" / "opencode-helicone" / ".env"
    own.parent.mkdir(parents=True)
    own.write_text("OPENCODE_HELICONE_MAX_RETRIES=7\n")
    (station.home / ".env").write_text("OPENCODE_HELICONE_MAX_RETRIES=8\n")
    with station.ledger() as db:
        there = destinations.destination(db, "https://example.invalid", "other", 1).id
        folders.remember_folder(db, folder(db, str(station.home)), there, {"redactPatterns": ["x+"]}, 1)
        fingerprint = destinations.fingerprint(db, station.key)
        ours = destinations.destination(db, normalise(station.endpoint), fingerprint, 1)
        destinations.remember_delivery_options(db, ours.id, {"flushInterval": 5})
    process = typed(station, "config", "show", "--json", "--export-mode", "metadata_only")
    told = {one["name"]: (one["value"], one["origin"]) for one in said(process)["settings"]}
    assert shape(json.loads(process.stdout)) == shape(example("config show"))
    assert told["apiKey"] == ("set", "environment HELICONE_API_KEY")
    assert told["exportMode"] == ("metadata_only", "command line")
    assert told["maxRetries"] == (7, f".env {own}")
    ignored = f"OPENCODE_HELICONE_MAX_RETRIES from .env {station.home / '.env'}: it does not count there"
    assert said(process)["problems"] == [ignored]
    assert told["redactPatterns"][0] == ["x+"]
    assert told["flushInterval"] == (5, told["redactPatterns"][1])
    assert told["userId"] == (None, "default")
    text = typed(station, "config", "show").stdout
    assert "maxRetries = 7 retries  [.env " in text
    assert f"problem: {ignored}" in text
    assert station.key not in text + process.stdout


def test_config_show_makes_no_queue(station: Station) -> None:
    done = typed(station, "config", "show")
    assert (done.returncode, done.stderr) == (0, "")
    assert "maxRetries = 5 retries" in done.stdout
    assert not station.spool.exists()


@pytest.mark.parametrize("wrong", ["damaged", "newer", "older", "a folder"])
def test_config_show_goes_without_a_queue_that_it_cannot_read(station: Station, wrong: str) -> None:
    path = station.spool / "ledger.db"
    match wrong:
        case "damaged":
            station.spool.mkdir()
            path.write_bytes(b"rubbish" * 1000)
        case "newer" | "older":
            with station.ledger() as db:
                db.execute(f"pragma user_version = {len(migrations()) + (1 if wrong == 'newer' else -1)}")
        case _:
            path.mkdir(parents=True)
    before = path.read_bytes() if path.is_file() else None
    done = typed(station, "config", "show")
    assert done.returncode == 0
    assert "maxRetries = 5 retries" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("opencode-helicone: without what hooks have recorded: ")
    assert (path.read_bytes() if path.is_file() else None) == before


def test_env_file_stands_in_for_the_one_of_the_folder(station: Station) -> None:
    (station.home / ".env").write_text("OPENCODE_HELICONE_MAX_RETRIES=7\n")
    (station.home / "mine").write_text("OPENCODE_HELICONE_MAX_RETRIES=9\n")
    assert "maxRetries = 9 retries" in typed(station, "config", "show", "--env-file", "mine").stdout
    assert "not-there" in complaint(typed(station, "config", "show", "--env-file", "not-there"), 2)


def test_limits_of_a_folder_are_told_of_as_its_own(station: Station) -> None:
    (station.home / "config" / "opencode-helicone").mkdir(parents=True, exist_ok=True)
    (station.home / "config" / "opencode-helicone" / "config.toml").write_text("maxRetries = 9\n")
    with station.ledger() as db:
        there = destinations.destination(db, "https://example.invalid", "other", 1).id
        limits = {"maxRetries": 2, "maxSpoolSize": 1_000}
        folders.remember_folder(db, folder(db, str(station.home)), there, limits, 1)
        folders.remember_folder(db, folder(db, "/elsewhere"), there, {"maxRetries": 3}, 1)
    here = typed(station, "config", "show").stdout
    assert "maxRetries = 2 retries  [OpenCode's hook, last seen for this folder]" in here
    assert "maxSpoolSize = 1000 bytes  [OpenCode's hook, last seen for this folder]" in here
    assert said(typed(station, "status", "--json"))["folder_limits"] == {"maxSpoolSize": 1, "maxRetries": 2}
    assert (
        "own limits bind their jobs alone: maxSpoolSize in 1, maxRetries in 2\n"
        in typed(station, "status", "-v").stdout
    )
    # What the user types overrules them.
    assert (
        "last seen for this folder"
        not in typed(station, "config", "show", "--set", "maxRetries=4", "--set", "maxSpoolSize=5000").stdout
    )
    told = said(typed(station, "status", "--json", "--set", "maxRetries=4"))
    assert (told["folder_limits"], told["held_bytes_max"]) == ({"maxSpoolSize": 1}, 52_428_800)


def test_migrate_makes_the_queue_where_it_is_told_to(station: Station) -> None:
    process = typed(station, "migrate", "--spool-directory", "elsewhere")
    assert (process.returncode, process.stdout) == (
        0,
        f"{station.home / 'elsewhere' / 'ledger.db'}: schema {len(migrations())}\n",
    )
    assert (station.home / "elsewhere" / "ledger.db").exists()
    assert not station.spool.exists()


def test_receiver_serves_until_it_is_interrupted(station: Station) -> None:
    store = station.home / "kept" / "store.db"
    with running(station, "receiver", "--port", "0", "--store", str(store)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+), keeping (.*)\n", line)
        assert found is not None, line
        assert found[2] == str(store)
        key = store.with_name("store.db.key").read_text().strip()
        asked = urllib.request.Request(f"{found[1]}/_sends", headers={"authorization": f"Bearer {key}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as reply:
            assert json.load(reply) == {"sends": []}
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    assert "10.0.0.1" in complaint(typed(station, "receiver", "--host", "10.0.0.1"), 1)


def test_plugin_is_installed_and_taken_away(station: Station) -> None:
    installed = station.home / "config" / "opencode" / "plugin" / "opencode-helicone.js"
    said_, *more = typed(station, "install-plugin", "--dry-run").stdout.splitlines()
    assert said_ == f"{installed}: would be installed"
    assert more, "what OpenCode it is for, or that it breaks older ones"
    assert not installed.exists()
    assert typed(station, "install-plugin", "--global").stdout.splitlines() == [f"{installed}: installed", *more]
    assert sys.executable in installed.read_text("utf-8")
    assert typed(station, "uninstall-plugin").stdout == f"{installed}: removed\n"
    assert not installed.exists()


def test_plugin_of_a_project_is_installed_there(station: Station) -> None:
    project = station.home / "project"
    project.mkdir()
    assert typed(station, "install-plugin", "--project", str(project)).returncode == 0
    assert (project / ".opencode" / "plugin" / "opencode-helicone.js").exists()
    assert typed(station, "uninstall-plugin", "--project", str(project), "--global").returncode == 2
    assert "nowhere" in complaint(typed(station, "install-plugin", "--project", "nowhere"), 1)


def test_set_outranks_the_environment_and_refuses_what_it_does_not_know(station: Station) -> None:
    station = replace(station, variables={"OPENCODE_HELICONE_MAX_RETRIES": "7"})
    settings = said(typed(station, "config", "show", "--json", "--set", "maxRetries=2"))["settings"]
    (shown_,) = [one for one in settings if one["name"] == "maxRetries"]
    assert (shown_["value"], shown_["origin"]) == (2, "command line")
    for argument in ("nonsense=1", "maxRetries", "maxRetries=two", "apiKey=x"):
        done = typed(station, "status", "--set", argument)
        assert done.returncode == 2, argument
        assert done.stderr.startswith("opencode-helicone:"), argument


@pytest.mark.parametrize("refused", [True, False], ids=["401", "nobody listens"])
def test_flush_says_why_nothing_went(station: Station, receiver: Receiver, *, refused: bool) -> None:
    station = replace(station, endpoint=receiver.url if refused else "http://127.0.0.1:9")
    receiver.fault({"status": 401, "times": 1_000})
    typed(station, "import", *files(SIMPLE))
    done = typed(station, "flush", "--timeout", "3")
    assert done.returncode == 1
    assert ("401" if refused else "refused") in done.stdout

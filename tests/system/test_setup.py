"""`setup`, with options and at a terminal, against real servers: what it writes, and when it writes nothing."""

from __future__ import annotations

import os
import pty
import select
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.receiver import background
from tests.support.processes import Station
from tests.support.said import AllDelivered, answer, stand_in, token
from tests.support.servers import Receiver, api_key, forwarded, nobody, receiving, scripted, self_signed
from tests.support.typed_commands import typed
from tests.system.test_cli import complaint, files

KEY = api_key("s")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "store.db", keys=frozenset({KEY})) as running:
        yield running


@pytest.fixture
def station(tmp_path: Path) -> Station:
    """Somebody who has nothing yet."""
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "", variables={"HELICONE_API_KEY": "", "HELICONE_ENDPOINT": ""})


def env_file(station: Station) -> Path:
    return station.home / "config" / "opencode-helicone" / ".env"


def written(station: Station) -> dict[str, str | None]:
    return dict(dotenv_values(env_file(station), interpolate=False))


def plugin(station: Station) -> Path:
    return station.home / "config" / "opencode" / "plugin" / "opencode-helicone.js"


def is_untouched(station: Station) -> bool:
    return not env_file(station).exists() and not plugin(station).exists()


def key_file(station: Station, key: str = KEY) -> str:
    path = station.home / "key"
    path.write_text(f"{key}\n")
    return str(path)


def test_a_token_is_set_up_as_a_key_is_and_the_intake_is_asked(station: Station) -> None:
    with stand_in(answer("metadata_only", "a-pattern"), "metadata_only") as intake:
        intake.states = AllDelivered()
        arguments = ("setup", "--endpoint", f"{intake.url}/custom/v1/log", "--key-file", key_file(station, token()))
        for _ in range(3):  # from the second one on what the intake says is kept
            done = station.run(*arguments)
            assert (done.returncode, done.stderr) == (0, "")
            assert "the intake says: export mode metadata_only, 1 redaction pattern(s)" in done.stdout
            assert "the centre has delivered it to Helicone" in done.stdout
            assert token() not in done.stdout
            assert written(station) == {
                "HELICONE_ENDPOINT": f"{intake.url}/custom/v1/log",
                "HELICONE_API_KEY_FILE": str(station.home / "key"),
                "OPENCODE_HELICONE_EXPORT_MODE": "full",
            }
            assert station.run("migrate").returncode == 0
        assert station.run("doctor", "--send").returncode == 0
        assert "exportMode=metadata_only" in station.run("config", "show").stdout.replace(" ", "").replace('"', "")


def test_with_options_it_asks_nothing_and_works_at_once(station: Station, receiver: Receiver) -> None:
    done = station.run("setup", "--endpoint", receiver.url, "--key-stdin", "--mode", "metadata_only", stdin=f"{KEY}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "it is stored" in done.stdout
    assert written(station) == {
        "HELICONE_ENDPOINT": receiver.url,
        "HELICONE_API_KEY": KEY,
        "OPENCODE_HELICONE_EXPORT_MODE": "metadata_only",
    }
    assert stat.S_IMODE(env_file(station).stat().st_mode) == 0o600
    assert plugin(station).exists()
    assert KEY not in done.stdout
    assert "What comes next" in done.stdout
    assert station.run("doctor", "--send").stdout.startswith("ok: nothing is wrong")


def test_a_key_file_is_named_and_not_copied(station: Station, receiver: Receiver) -> None:
    file = key_file(station)
    done = typed(station, "setup", "--endpoint", receiver.url, "--key-file", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert written(station)["HELICONE_API_KEY_FILE"] == file
    assert KEY not in env_file(station).read_text()
    again = typed(station, "setup")  # everything is known by now
    assert (again.returncode, again.stderr) == (0, "")
    assert written(station)["HELICONE_API_KEY_FILE"] == file


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--cloud, --endpoint URL or --receiver"),
        (["--cloud"], "--key-file FILE or --key-stdin"),
        (["--cloud", "--key-file", "/nowhere/key"], "No such file"),
        (["--endpoint", "http://192.0.2.1", "--key-file", "KEY"], "--allow-http"),
    ],
)
def test_what_is_missing_without_a_terminal_is_named(station: Station, options: list[str], told: str) -> None:
    file = key_file(station)
    line = complaint(typed(station, "setup", *(file if one == "KEY" else one for one in options)), 2)
    assert told in line
    assert is_untouched(station)


@pytest.mark.parametrize(
    "options",
    [
        ["--cloud", "--receiver"],
        ["--cloud", "--key-stdin", "--key-file", "x"],
        ["--cloud", "--mode", "everything"],
        ["--endpoint", "ftp://x"],
        ["--endpoint", "https://x", "--key-stdin"],
        ["--nonsense"],
    ],
)
def test_wrong_options_do_nothing(station: Station, options: list[str]) -> None:
    assert typed(station, "setup", *options).returncode == 2
    assert is_untouched(station)


def test_a_log_that_does_not_arrive_leaves_all_as_it_was(station: Station) -> None:
    with nobody() as url:
        options = ("setup", "--endpoint", url, "--key-file", key_file(station))
        done = typed(station, *options)
        assert done.returncode == 1
        assert "nothing was written" in done.stderr
        assert is_untouched(station)
        assert typed(station, *options, "--no-test").returncode == 0
    assert written(station)["HELICONE_ENDPOINT"] == url


def test_a_key_that_is_not_known_there_leaves_all_as_it_was(station: Station, receiver: Receiver) -> None:
    done = typed(station, "setup", "--endpoint", receiver.url, "--key-file", key_file(station, api_key("x")))
    assert done.returncode == 1
    assert "did not take it" in done.stdout
    assert is_untouched(station)


def test_a_variable_that_counts_above_the_file_is_told(station: Station, receiver: Receiver) -> None:
    shell = replace(
        station, variables={"HELICONE_ENDPOINT": "https://example.com", "OPENCODE_HELICONE_EXPORT_MODE": "off"}
    )
    done = typed(shell, "setup", "--endpoint", receiver.url, "--key-file", key_file(shell), "--mode", "full")
    assert done.returncode == 0
    assert "endpoint from environment HELICONE_ENDPOINT counts instead of what was written" in done.stderr
    assert "exportMode from environment OPENCODE_HELICONE_EXPORT_MODE is stricter, and counts" in done.stderr
    assert "Set up." not in done.stdout


def test_a_wrong_key_of_the_shell_ends_in_what_to_type(station: Station, receiver: Receiver) -> None:
    shell = replace(station, variables={**station.variables, "HELICONE_API_KEY": api_key("wrong")})
    done = typed(shell, "setup", "--endpoint", receiver.url, "--key-file", key_file(shell))
    assert (done.returncode, "Set up." in done.stdout) == (0, False)
    todo = "unset HELICONE_API_KEY (or set it right where OpenCode is started)"
    assert done.stderr.splitlines()[-1].endswith(f"counts instead of what was written: {todo}")


def test_lines_of_other_settings_stay(station: Station, receiver: Receiver) -> None:
    env_file(station).parent.mkdir(parents=True)
    env_file(station).write_text("# mine\nOPENCODE_HELICONE_USER_ID=me\n")
    assert typed(station, "setup", "--endpoint", receiver.url, "--key-file", key_file(station)).returncode == 0
    assert env_file(station).read_text().startswith("# mine\nOPENCODE_HELICONE_USER_ID=me\n")


def test_what_waits_elsewhere_is_told_with_what_moves_it(station: Station, receiver: Receiver) -> None:
    with nobody() as url:
        before = replace(station, endpoint=url, key=KEY, variables={})
        assert typed(before, "import", *files("a_simple")).returncode == 0
    done = typed(station, "setup", "--endpoint", receiver.url, "--key-file", key_file(station))
    assert f"Not yet sent: 2 jobs wait for {url}, another endpoint" in done.stdout
    (line,) = [one for one in done.stdout.splitlines() if "destination adopt" in one]
    command = line.strip().split("    ")[0].removeprefix("opencode-helicone ").split(" ")
    assert "2 jobs moved" in typed(station, *command, "--yes").stdout
    assert typed(station, "flush").returncode == 0
    assert len(receiver.sends()) > 1


# --- at a terminal


TAKES_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.executable, [sys.executable, '-m', 'app', *sys.argv[1:]])"
)
"""Then Ctrl-C reaches the command, and it hides what is typed."""


def is_echoing(terminal: int) -> bool:
    """Not while what is typed is hidden. What was typed before that is thrown away, though the question stood there."""
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def at_terminal(station: Station, dialogue: Sequence[tuple[str, str]], *options: str) -> tuple[int, str]:
    """Exit code, and what the terminal showed. Each answer is typed once its question stands there."""
    terminal, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", TAKES_ITS_TERMINAL, "setup", *options],
        cwd=station.home,
        env=station.environ | {"TERM": "dumb"},
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    ) as process:
        os.close(inner)
        shown, told, left = "", 0, list(dialogue)
        end_s = time.monotonic() + 120
        while time.monotonic() < end_s:
            readable, _, _ = select.select([terminal], [], [], 0.2)
            try:
                data = os.read(terminal, 65_536) if readable else b""
            except OSError:  # the other end is closed
                break
            if readable and not data:
                break
            shown += data.decode("utf-8", "replace")
            if left and left[0][0] in shown[told:] and (is_echoing(terminal) != left[0][0].startswith("Key")):
                told = len(shown)
                os.write(terminal, left.pop(0)[1].encode())
        else:
            process.kill()
        code = process.wait()
    os.close(terminal)
    assert left == [], shown
    return code, shown


def test_at_a_terminal_it_asks_and_shows_no_key(station: Station, receiver: Receiver) -> None:
    code, shown = at_terminal(
        station,
        [
            ("1, 2 or 3", "4\n"),
            ("type 1, 2 or 3", "2\n"),
            ("Its address", "nonsense\n"),
            ("Its address", f"{receiver.url}\n"),
            ("Key (not shown", "two words\n"),
            ("Key (not shown", f"{KEY}\n"),
            ("What may leave", "1\n"),
        ],
    )
    assert code == 0, shown
    assert KEY not in shown
    assert written(station)["HELICONE_API_KEY"] == KEY
    assert written(station)["OPENCODE_HELICONE_EXPORT_MODE"] == "full"


def test_a_certificate_of_ones_own_is_asked_for_and_written_down(
    station: Station, receiver: Receiver, tmp_path: Path
) -> None:
    certificate, rubbish = self_signed(tmp_path), tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    with scripted(forwarded(receiver.url), certificate=certificate) as server:
        code, shown = at_terminal(
            station,
            [
                ("1, 2 or 3", "2\n"),
                ("Its address", f"{server.url}\n"),
                ("Key (not shown", f"{KEY}\n"),
                ("File", "/nowhere.pem\n"),
                ("File", f"{rubbish}\n"),
                ("File", f"{tmp_path / 'only.pem'}\n"),
                ("What may leave", "1\n"),
            ],
        )
    assert code == 0, shown
    for told in ("certificate is not trusted", "/nowhere.pem: No such file", "it holds no certificate (PEM)"):
        assert told in shown
    assert "it is stored" in shown
    assert written(station)["OPENCODE_HELICONE_CA_FILE"] == str(tmp_path / "only.pem")
    # What was asked about it was sent to nobody.
    assert [one.line.split(" ")[0] for one in server.requests] == ["POST"] * len(server.requests)
    assert len(receiver.sends()) == 1


@pytest.mark.parametrize(("typed_last", "code"), [("\x03", 130), ("\x04", 1)], ids=["Ctrl-C", "Ctrl-D"])
def test_who_leaves_it_leaves_nothing_behind(station: Station, receiver: Receiver, typed_last: str, code: int) -> None:
    dialogue = [("1, 2 or 3", "2\n"), ("Its address", f"{receiver.url}\n"), ("Key (not shown", typed_last)]
    found, shown = at_terminal(station, dialogue)
    assert found == code, shown
    assert "nothing was written" in shown
    assert is_untouched(station)


def test_a_receiver_that_it_started_ends_with_who_leaves_it(station: Station) -> None:
    store = station.home / "data" / "opencode-helicone-receiver" / "store.db"
    code, shown = at_terminal(station, [("What may leave", "\x03")], "--receiver")
    assert code == 130, shown
    assert not background.stop(store)
    assert is_untouched(station)


def test_a_receiver_goes_on_when_it_is_done_and_is_what_the_next_one_proposes(station: Station) -> None:
    store = station.home / "data" / "opencode-helicone-receiver" / "store.db"
    try:
        code, shown = at_terminal(station, [("1, 2 or 3", "receiver\n"), ("What may leave", "off\n")])
        assert code == 0, shown
        assert "/?pass=" in shown
        assert written(station)["OPENCODE_HELICONE_EXPORT_MODE"] == "off"
        code, shown = at_terminal(station, [("1, 2 or 3 [3]", "\n"), ("What may leave", "\n")])
        assert (code, "the receiver runs" in shown) == (0, True), shown
        # Its key opens nothing elsewhere.
        assert "--key-file FILE or --key-stdin" in complaint(typed(station, "setup", "--cloud"), 2)
        code, shown = at_terminal(station, [("Key (not shown): ", "\x03")], "--cloud")
        assert code == 130, shown
    finally:
        assert background.stop(store)

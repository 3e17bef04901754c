"""`make minutes`: the first fifteen minutes of a user, from the wheel, in a HOME that holds nothing but OpenCode.

    install ─▶ setup ─▶ one prompt to the real OpenCode ─▶ the session on the receiver's page ─▶ status ─▶ uninstall

Each installer that is there takes its turn: uv, pipx, and Python's own venv. Where Python's pip refuses to install
beside the system's packages (PEP 668), that is shown too. Ends with 1 where a step does not do what the next one needs.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.opencode import OpenCode, installed_opencode
from tests.system.wheel import build

PROGRAM = "opencode-helicone"
SYSTEM_PYTHON = Path("/usr/bin/python3")
PROMPT = "[[script:tools]] what is in the README?"
SEEN_S_MAX = 60.0


class Home:
    """What a user types, and what comes of it."""

    def __init__(self, opencode: OpenCode) -> None:
        self.opencode = opencode
        bin_folder = opencode.home / ".local" / "bin"
        path = f"{bin_folder}:{opencode.binary.parent}:{opencode.environ['PATH']}"
        self.environ = {name: text for name, text in opencode.environ.items() if not name.startswith("XDG_")}
        self.environ |= {"PATH": path, "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}

    def types(self, *command: str, code: int = 0) -> str:
        began_s = time.monotonic()
        done = subprocess.run(
            command,
            cwd=self.opencode.home,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        say(f"$ {' '.join(Path(one).name if one.startswith('/') else one for one in command)}")
        say(indented(f"{done.stdout}{done.stderr}"))
        say(f"  ({time.monotonic() - began_s:.1f} s)")
        if done.returncode != code:
            sys.exit(f"ended with {done.returncode}, not {code}")
        return done.stdout


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().split("\n") if "WARNING: Location" not in line)


def installers(wheel: Path, home: Path) -> Iterator[tuple[str, Sequence[Sequence[str]], Sequence[str]]]:
    """Name, commands that install the wheel, and the command that takes it away again."""
    python = str(SYSTEM_PYTHON) if SYSTEM_PYTHON.exists() else sys.executable
    if uv := shutil.which("uv"):
        yield "uv", [[uv, "tool", "install", "--python", python, str(wheel)]], [uv, "tool", "uninstall", PROGRAM]
    if pipx := shutil.which("pipx"):
        yield "pipx", [[pipx, "install", "--python", python, str(wheel)]], [pipx, "uninstall", PROGRAM]
    venv, program = home / ".local" / "share" / "venv", home / ".local" / "bin" / PROGRAM
    yield (
        "venv",
        [
            [sys.executable, "-m", "venv", str(venv)],
            [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", str(wheel)],
            ["mkdir", "-p", str(program.parent)],
            ["ln", "-s", str(venv / "bin" / PROGRAM), str(program)],
        ],
        ["rm", "-r", str(venv), str(program)],
    )


def pep_668() -> bool:
    if not SYSTEM_PYTHON.exists():
        return False
    asked = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    folder = subprocess.run([SYSTEM_PYTHON, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    return (Path(folder) / "EXTERNALLY-MANAGED").exists()


def open_page(address: str) -> tuple[str, urllib.request.OpenerDirector]:
    """As a browser that keeps cookies."""
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
    with browser.open(address, timeout=10) as answer:
        return str(answer.read(), "utf-8"), browser


def seen_session(address: str) -> str:
    """The page of the session that OpenCode has just had, once it stands on the receiver's page."""
    end_s = time.monotonic() + SEEN_S_MAX
    while True:
        page, browser = open_page(address)
        links = [html.unescape(link) for link in re.findall(r'href="(session\?id=ses_[^"]+)"', page)]
        if links:
            with browser.open(address.split("?", maxsplit=1)[0] + links[0], timeout=10) as answer:
                found = str(answer.read(), "utf-8")
            if "tool:" in found:
                return found
        if time.monotonic() > end_s:
            sys.exit("the session does not come to the receiver's page")
        time.sleep(0.2)


def plain(page: str) -> str:
    text = re.sub(r"<style>.*?</style>|<title>.*?</title>", "", page, flags=re.DOTALL)
    text = re.sub(r"<(?:summary|h1|p)[^>]*>", "\n", text)
    return html.unescape(re.sub(r"<[^>]+>", " ", text)).strip()


def first_minutes(home: Home, install: Sequence[Sequence[str]], leave: Sequence[str]) -> None:
    began_s = time.monotonic()
    opencode = home.opencode
    for command in install:
        home.types(*command)
    said = home.types(PROGRAM, "setup", "--receiver", "--mode", "full")
    address = re.search(r"http://\S+/\?pass=\w+", said)
    if address is None:
        sys.exit("setup does not say where the page is")
    try:
        project = opencode.project(opencode.home / "shop")
        say(f'$ opencode run "{PROMPT}"')
        answered = OpenCode(opencode.binary, opencode.home, home.environ).run(project, PROMPT)
        if answered.exit_code != 0:
            sys.exit(f"OpenCode ended with {answered.exit_code}: {answered.errors}")
        answered_s = time.monotonic()
        page = seen_session(address[0])
        say(f"the session, as {address[0].split('?')[0]} shows it {time.monotonic() - answered_s:.1f} s later:")
        say(indented("\n".join(plain(page).split("\n")[:40])))
        home.types(PROGRAM, "status")
        home.types(PROGRAM, "flush")
    finally:
        home.types(PROGRAM, "uninstall", "--purge", "--yes")
    home.types(*leave)
    found = (path.relative_to(opencode.home) for path in opencode.home.rglob("*helicone*"))
    # Installers keep what they downloaded, and a lock.
    left = sorted(str(path) for path in found if path.parts[0] != ".cache" and "pipx" not in path.parts)
    if left:
        sys.exit(f"left behind: {', '.join(left)}")
    say(f"from nothing to seen to gone: {time.monotonic() - began_s:.0f} s")


@contextmanager
def empty_home() -> Iterator[Home]:
    with (
        tempfile.TemporaryDirectory(prefix="first-minutes-", ignore_cleanup_errors=True) as name,
        installed_opencode(Path(name)) as opencode,
    ):
        yield Home(opencode)


def main() -> None:
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="first-minutes-wheel-") as name:
        wheel = build(Path(name))
        say(f"{wheel.name}, Python {sysconfig.get_python_version()}")
        if pep_668() and not wanted:
            with empty_home() as home:
                home.types(str(SYSTEM_PYTHON), "-m", "pip", "install", str(wheel), code=1)
        for number in range(3):
            with empty_home() as home:
                found = list(installers(wheel, home.opencode.home))
                if number < len(found) and (not wanted or found[number][0] in wanted):
                    say(f"== {found[number][0]}")
                    first_minutes(home, *found[number][1:])


if __name__ == "__main__":
    main()

"""Drives the real OpenCode: installed from npm into a cache folder, in a home of its own, against a scripted provider.

    @pytest.mark.opencode
    def test_...(opencode: OpenCode, tmp_path: Path) -> None:
        project = opencode.project(tmp_path / "project", plugin=[["/path/helicone.js", {"redactPatterns": []}]])
        finished = opencode.run(project, "[[script:hello]] hi")
        with opencode.serve(project) as server:
            session = server.new_session()
            server.prompt(session, "[[script:tools]] work")

A module that wants the fixture says `pytest_plugins = ["tests.support.opencode"]`; it may take names from here as well,
which PYTEST_DONT_REWRITE makes possible in any order. One home serves a whole process of tests, and begins as a copy
of one in the cache: the first start in a new one takes many seconds, because OpenCode installs its own plugin package.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

import pytest

from tests.support import json_store
from tests.support.checkout import ROOT
from tests.support.fake_llm import fake_llm

VERSION = "1.18.33"
INSTALL_S_MAX = 600
RUN_S_MAX = 120
CONFIG = Path(".config") / "opencode"
INSTALLED = ("package.json", "package-lock.json", "bun.lock", "node_modules")
"""What OpenCode puts into each folder that has plugins, as far as its version does."""
MODEL = {"providerID": "fake", "modelID": "fake-large"}


def unavailable(reason: str) -> NoReturn:
    """Skip, saying why; in continuous integration a test that did not run is a failure."""
    message = f"not run against OpenCode: {reason}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def _cache() -> Iterator[Path]:
    """Where what is installed is kept; ours alone, as the tests run in several processes."""
    cache = Path(os.environ.get("OPENCODE_HELICONE_TEST_CACHE") or ROOT / ".cache" / "opencode").absolute()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


def install_opencode(version: str = VERSION) -> Path:
    """The binary, installed from npm unless the cache folder holds it already. Skips when that cannot be."""
    with _cache() as cache:
        return _installed(cache) if version == VERSION else _unpacked(cache / "versions" / version, version)


def _installed(cache: Path) -> Path:
    binary = cache / "node_modules" / ".bin" / "opencode"
    package = cache / "node_modules" / "opencode-ai" / "package.json"
    if not binary.exists() or json.loads(package.read_text())["version"] != VERSION:
        _npm("install", "--prefix", str(cache), "--no-audit", "--no-fund", f"opencode-ai@{VERSION}")
    return binary


def _unpacked(folder: Path, version: str) -> Path:
    """Another version, out of the package that holds nothing but the binary."""
    if not folder.exists():
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            unavailable(f"{version} is taken for Linux on x86-64 only")
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            _npm("pack", "--silent", "--pack-destination", draft, f"opencode-linux-x64@{version}")
            (archive,) = Path(draft).glob("*.tgz")
            with tarfile.open(archive) as packed:
                packed.extractall(Path(draft) / "unpacked", filter="data")
            (Path(draft) / "unpacked").rename(folder)
    return folder / "package" / "bin" / "opencode"


def install_package(name: str, version: str) -> Path:
    """A plugin of somebody else; its scripts do not run."""
    with _cache() as cache:
        folder = cache / "packages" / f"{name.replace('/', '-')}-{version}"
        if not (folder / "node_modules" / name).exists():
            arguments = ("--no-audit", "--no-fund", "--ignore-scripts", f"{name}@{version}")
            _npm("install", "--prefix", str(folder), *arguments)
    return folder / "node_modules" / name


def _npm(*arguments: str) -> None:
    npm = shutil.which("npm")
    if npm is None:
        unavailable("npm is not installed")
    try:
        done = subprocess.run([npm, *arguments], capture_output=True, text=True, timeout=INSTALL_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        unavailable(f"npm {arguments[0]} took more than {INSTALL_S_MAX} s")
    if done.returncode != 0:
        unavailable(f"npm {arguments[0]} failed: {done.stderr.strip()[-500:]}")


@dataclass(frozen=True, slots=True)
class Finished:
    exit_code: int
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class OpenCode:
    binary: Path
    home: Path
    environ: Mapping[str, str]
    plain: Finished | None = None
    """How `[[script:hello]]` ended with a plugin that does nothing."""

    @property
    def data(self) -> Path:
        return self.home / ".local" / "share" / "opencode"

    def project(self, directory: Path, *, plugin: list[Any] | None = None) -> Path:
        """A git repository with a README and a configuration that names `plugin`."""
        directory.mkdir(parents=True)
        (directory / "README.md").write_text("# demo project\n\nhello\n")
        (directory / "opencode.json").write_text(json.dumps({"plugin": plugin or []}))
        author = ["-c", "user.email=dev@example.com", "-c", "user.name=dev"]
        for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "start"]):
            subprocess.run(["git", *arguments], cwd=directory, env=self.environ, check=True)
        return directory

    def start(self, project: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """`opencode ARGUMENTS…` in the project, its output in pipes."""
        # OpenCode takes the directory from PWD before it asks for the working directory.
        env = {**self.environ, "PWD": str(project), **(environ or {})}
        command = [str(self.binary), *arguments]
        pipe = subprocess.PIPE
        # A session of its own, so that a test can signal its terminal's processes as one.
        return subprocess.Popen(
            command,
            cwd=project,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )

    def run(self, project: Path, prompt: str, *arguments: str, environ: Mapping[str, str] | None = None) -> Finished:
        """`opencode run PROMPT` to its end."""
        with self.start(project, "run", *arguments, prompt, environ=environ) as process:
            try:
                output, errors = process.communicate(timeout=RUN_S_MAX)
            except BaseException:
                process.kill()
                raise
        return Finished(process.returncode, output, errors)

    def stored(self, session: str) -> list[dict[str, Any]]:
        """The session's messages with their parts, in order, as OpenCode's own store holds them."""
        path = self.data / "opencode.db"
        if not path.exists():
            return json_store.stored(self.data / "storage", session)
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            messages = db.execute(
                "select id, data from message where session_id = ? order by time_created, id", [session]
            ).fetchall()
            parts = db.execute(
                "select id, message_id, data from part where session_id = ? order by id", [session]
            ).fetchall()
        return [
            {
                "info": {**json.loads(data), "id": message, "sessionID": session},
                "parts": [
                    {**json.loads(part_data), "id": part, "messageID": message, "sessionID": session}
                    for part, of_message, part_data in parts
                    if of_message == message
                ],
            }
            for message, data in messages
        ]

    def sessions(self, project: Path) -> list[dict[str, Any]]:
        """The sessions of a project, oldest first: columns of OpenCode's table."""
        path = self.data / "opencode.db"
        if not path.exists():
            return json_store.sessions(self.data / "storage", project)
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            rows = db.execute("select * from session where directory = ? order by time_created", (str(project),))
            return [dict(row) for row in rows]

    def spare_installation(self, directory: Path) -> None:
        """Links into a folder of plugins what OpenCode would otherwise install there from npm at its first start."""
        for name in INSTALLED:
            if (self.home / CONFIG / name).exists():
                (directory / name).symlink_to(self.home / CONFIG / name)

    @contextmanager
    def serve(self, project: Path, *, environ: Mapping[str, str] | None = None) -> Iterator[Server]:
        """`opencode serve` until the block ends."""
        arguments = ("serve", "--port", "0", "--hostname", "127.0.0.1")
        with self.start(project, *arguments, environ=environ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            found = None
            lines: list[str] = []
            while found is None:
                line = process.stdout.readline()
                assert line, f"the server ended: {lines} {process.stderr.read()}"
                lines.append(line)
                found = re.search(r"listening on (http://\S+)", line)
            drains = [threading.Thread(target=stream.read) for stream in (process.stdout, process.stderr)]
            for drain in drains:
                drain.start()
            try:
                yield Server(found[1], project, process)
            finally:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:  # it does not hear the signal while npm runs inside of it
                    process.kill()
                for drain in drains:
                    drain.join()


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    project: Path
    process: subprocess.Popen[str] = field(repr=False)

    def request(self, method: str, path: str, body: Any = None, *, directory: Path | None = None) -> Any:
        """The answer's JSON, None when it has none. Raises HTTPError."""
        query = urlencode({"directory": str(directory or self.project)})
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}?{query}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=RUN_S_MAX) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            error.close()
            raise
        return json.loads(answer) if answer else None

    def new_session(self, **facts: Any) -> str:
        session: str = self.request("POST", "/session", facts)["id"]
        return session

    def prompt(self, session: str, text: str, **more: Any) -> Any:
        """Returns when the answer is complete."""
        body = {"model": MODEL, "parts": [{"type": "text", "text": text}], **more}
        return self.request("POST", f"/session/{session}/message", body)

    def prompt_async(self, session: str, text: str) -> None:
        body = {"model": MODEL, "parts": [{"type": "text", "text": text}]}
        self.request("POST", f"/session/{session}/prompt_async", body)

    def abort(self, session: str) -> None:
        self.request("POST", f"/session/{session}/abort")

    def messages(self, session: str) -> Any:
        return self.request("GET", f"/session/{session}/message")


def configuration(llm_url: str) -> dict[str, Any]:
    """OpenCode's user configuration: one provider, which costs something and knows tools."""
    large = {
        "name": "Fake Large",
        "tool_call": True,
        "reasoning": True,
        "attachment": True,
        "cost": {"input": 3, "output": 15, "cache_read": 0.3, "cache_write": 3.75},
        "limit": {"context": 200000, "output": 8192},
        "modalities": {"input": ["text", "image"], "output": ["text"]},
    }
    small = {"name": "Fake Small", "tool_call": True, "limit": {"context": 100000, "output": 4096}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Fake LLM",
        "options": {"baseURL": llm_url, "apiKey": "placeholder"},
        "models": {"fake-large": large, "fake-small": small},
    }
    return {
        "model": "fake/fake-large",
        "small_model": "fake/fake-small",
        "autoupdate": False,
        "share": "disabled",
        "provider": {"fake": provider},
    }


def configure(home: Path, llm_url: str) -> None:
    (home / CONFIG).mkdir(parents=True)
    (home / CONFIG / "opencode.json").write_text(json.dumps(configuration(llm_url)))
    # OpenCode 1.0 would download ripgrep at its first run. This one finds nothing.
    (home / "bin").mkdir()
    (home / "bin" / "rg").write_text("#!/bin/sh\n")
    (home / "bin" / "rg").chmod(0o755)


def isolated(home: Path) -> dict[str, str]:
    """The environment: nothing of the user's OpenCode, Helicone or Python settings, no download at start."""
    foreign = re.compile(r"OPENCODE|HELICONE|XDG_|PYTHON|OLDPWD$|PWD$")
    environ = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    folders = {"CONFIG": ".config", "DATA": ".local/share", "STATE": ".local/state", "CACHE": ".cache"}
    environ |= {f"XDG_{kind}_HOME": str(home / folder) for kind, folder in folders.items()}
    switches = ("MODELS_FETCH", "AUTOUPDATE", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "SHARE")
    environ |= {f"OPENCODE_DISABLE_{switch}": "1" for switch in switches}
    return {**environ, "HOME": str(home), "PATH": os.pathsep.join([str(home / "bin"), os.environ["PATH"]])}


@contextmanager
def installed_opencode(base: Path, version: str = VERSION) -> Iterator[OpenCode]:
    """The real OpenCode with a home in `base`, in which its own first-start installation is behind it."""
    with fake_llm() as llm_url:
        binary, home = install_opencode(version), base / "home"
        with _cache() as cache:
            template = cache / f"home-{version}"
            if not template.exists():
                warm_up(binary, template, llm_url)
        shutil.copytree(template / ".local", home / ".local")
        plain = Finished(**json.loads((template / "plain.json").read_text()))
        driver = OpenCode(binary, home, isolated(home), plain)
        configure(home, llm_url)
        for name in INSTALLED:
            if (template / CONFIG / name).exists():
                (home / CONFIG / name).symlink_to(template / CONFIG / name)
        yield driver


def warm_up(binary: Path, template: Path, llm_url: str) -> None:
    """A home in which OpenCode was started once. It installs its plugin package only when there is a plugin to load."""
    with tempfile.TemporaryDirectory(dir=template.parent) as folder:
        home = Path(folder) / "home"
        configure(home, llm_url)
        plugin = Path(folder) / "idle.js"
        plugin.write_text(
            'const server = async () => ({})\nexport default Object.assign(server, { id: "idle", server })\n'
        )
        driver = OpenCode(binary, home, isolated(home))
        finished = driver.run(
            driver.project(Path(folder) / "warm-up", plugin=[str(plugin)]), "[[script:hello]] warm up"
        )
        assert finished.exit_code == 0, finished.errors
        (home / "plain.json").write_text(json.dumps(asdict(finished)))
        shutil.rmtree(home / ".npm", ignore_errors=True)
        home.rename(template)


@pytest.fixture(scope="session")
def opencode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenCode]:
    with installed_opencode(tmp_path_factory.mktemp("opencode")) as driver:
        yield driver

"""The gateway of `deploy/gateway.conf` in Debian's nginx: what laptops send through it, and what they cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.processes import Station
from tests.support.recorded import export_files
from tests.support.servers import Receiver, api_key, receiving
from tests.support.waiting import wait_until

TEXT = (ROOT / "deploy" / "gateway.conf").read_text("utf-8")
TOKENS = {"ann": api_key("a"), "bob": api_key("b")}
"""By laptop; in the form of a key, so that `doctor` does not wonder."""
AROUND = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/gateway.conf;
}}
"""


def program(name: str) -> str:
    """A program that CI must have, and a developer may."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        assert not os.environ.get("CI"), f"{name} is missing: .ci/run installs it"
        pytest.skip(f"needs {name}")
    return found


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway before a receiver that knows one key."""

    url: str
    receiver: Receiver
    key: str
    certificate: Path
    log: Path

    def station(self, home: Path, laptop: str, token: str = "") -> Station:
        """The laptop, set up as the page says."""
        home.mkdir()
        variables = {"SSL_CERT_FILE": str(self.certificate)}
        return Station(home, f"{self.url}/custom/v1/log", token or TOKENS[laptop], variables)

    def status_of(self, method: str, path: str, laptop: str) -> tuple[int, str | None]:
        """The status, and its Retry-After."""
        headers = {"Authorization": f"Bearer {TOKENS[laptop]}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", b"{}", headers, method=method)
        context = ssl.create_default_context(cafile=str(self.certificate))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("Retry-After")


@contextmanager
def running(folder: Path, changes: dict[str, str] | None = None) -> Iterator[Gateway]:
    """nginx with the file as it is, but for places, addresses and `changes`."""
    nginx, openssl = program("nginx"), program("openssl")
    key = api_key("k")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=loopback",
         "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(folder / "gateway.key"), "-out", str(folder / "gateway.crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "tokens.map").write_text("".join(f'"Bearer {token}" {name};\n' for name, token in TOKENS.items()))
    (folder / "key.conf").write_text(f'proxy_set_header Authorization "Bearer {key}";\n')
    with receiving(folder / "store.db", keys=frozenset({key})) as receiver, socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
        s.close()
        text = TEXT
        for old, new in {
            "listen 443": f"listen 127.0.0.1:{port}",
            "server api.worker.helicone.ai:443": f"server {receiver.url.removeprefix('http://')}",
            "proxy_pass https://": "proxy_pass http://",  # the receiver speaks no TLS
            "Host api.worker.helicone.ai": "Host localhost",
            "/etc/nginx/helicone": str(folder),
            "/var/log/nginx": str(folder),
            **(changes or {}),
        }.items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / "gateway.conf").write_text(text)
        (folder / "nginx.conf").write_text(AROUND.format(folder=folder))
        command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        subprocess.run([*command, "-t", "-q"], check=True)
        process = subprocess.Popen(command)
        try:
            gateway = Gateway(
                f"https://127.0.0.1:{port}", receiver, key, folder / "gateway.crt", folder / "helicone.log"
            )
            wait_until(lambda: listens(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "error.log").read_text()
            yield gateway
        finally:
            process.terminate()
            process.wait(30)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gateway"
    made.mkdir()
    return made


def test_it_is_what_the_page_says() -> None:
    page = (ROOT / "docs" / "several-users.md").read_text("utf-8")
    assert len(TEXT.splitlines()) < 60
    assert "in under 60 lines" in page
    assert "zone=laptop:1m rate=30r/s" in TEXT
    assert "zone=laptop burst=100" in TEXT
    assert "| a laptop | 30 logs a second; more is delayed, and from 100 waiting on answered 429 |" in page
    assert "zone=all:1m rate=300r/s" in TEXT
    assert "| all | 300 a second;" in page


def test_laptops_deliver_under_the_key_of_the_gateway_and_never_have_it(folder: Path, tmp_path: Path) -> None:
    with running(folder) as gateway:
        for laptop, recording in (("ann", "a_simple"), ("bob", "b_tools")):
            station = gateway.station(tmp_path / laptop, laptop)
            taken = station.run("import", *map(str, export_files(recording)))
            assert taken.returncode == 0, taken.stderr
            flushed = station.run("flush", "--timeout", "60")
            assert flushed.returncode == 0, flushed.stdout + flushed.stderr
            held = b"".join(path.read_bytes() for path in station.spool.rglob("*") if path.is_file())
            assert gateway.key.encode() not in held
        rows, sends = gateway.receiver.rows(), gateway.receiver.sends()
        assert len({row.log.properties["Helicone-Session-Id"] for row in rows}) == len(TOKENS)
        # Under the one key that the receiver knows: with any other nothing would have been stored.
        assert len(rows) == len(sends)
        log = gateway.log.read_text()
    assert {line.split()[1] for line in log.splitlines()} == set(TOKENS)
    assert not any(secret in log for secret in (gateway.key, *TOKENS.values()))


def test_a_laptop_is_set_up_with_the_command_of_the_page(folder: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "several-users.md").read_text("utf-8")
    (line,) = re.findall(r"^\$ opencode-helicone (setup --endpoint .*)$", page, re.MULTILINE)
    with running(folder) as gateway:
        laptop = replace(gateway.station(tmp_path / "ann", "ann"), endpoint="", key="")
        (laptop.home / ".helicone-token").write_text(TOKENS["ann"])
        words = line.replace("https://gateway.example.com", gateway.url).replace("~", str(laptop.home)).split()
        done = laptop.run(*words)
        assert (done.returncode, "took it" in done.stdout) == (0, True), done.stdout + done.stderr
        assert len(gateway.receiver.rows()) == 1


def test_a_laptop_with_an_unknown_token_keeps_its_jobs_and_says_so(folder: Path, tmp_path: Path) -> None:
    with running(folder) as gateway:
        station = gateway.station(tmp_path / "eve", "eve", api_key("e"))
        station.run("import", *map(str, export_files("a_simple")))
        assert station.run("flush", "--timeout", "5").returncode == 1
        status = json.loads(station.run("status", "--json").stdout)
        assert [one["health"] for one in status["destinations"] if one["current"]] == ["refused"]
        assert "unknown token" in " ".join(status["waiting"])
        assert gateway.receiver.sends() == []


def test_what_is_no_log_route_does_not_pass(folder: Path) -> None:
    reading = ("/v1/request/query-clickhouse", "/v1/session/query", "/v1/log/request", "/", "/custom/v1/log/")
    with running(folder) as gateway:
        for path in (*reading, "/custom/v1/log/../../../v1/session/query", "/v1/trace/custom/log%2f../../query"):
            assert gateway.status_of("POST", path, "ann")[0] == 404, path
        assert gateway.status_of("GET", "/custom/v1/log", "ann")[0] == 403
        assert gateway.receiver.sends() == []


def test_who_sends_too_much_is_told_when_to_come_again_and_the_others_are_not(folder: Path, tmp_path: Path) -> None:
    slow = {"rate=30r/s": "rate=1r/s", "zone=laptop burst=100": "zone=laptop burst=2 nodelay"}
    with running(folder, slow) as gateway, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: gateway.status_of("POST", "/custom/v1/log", "ann"), range(20)))
        assert (429, "2") in answers
        assert gateway.status_of("POST", "/custom/v1/log", "bob")[0] == 400  # asked, and no log
        station = gateway.station(tmp_path / "ann", "ann")
        station.run("import", *map(str, export_files("b_tools")))
        flushed = station.run("flush", "--timeout", "120")
        assert flushed.returncode == 0, flushed.stdout + flushed.stderr
        assert json.loads(station.run("status", "--json").stdout)["jobs"]["dead"] == 0

"""`SECURITY.md` says what the program does: its files, their modes, how long they stay, and whom it contacts."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from app.capture.enqueue import MARK_DIGITS
from app.database import recover
from app.exporters.helicone.routes import read_back_url
from app.ledger.destinations import fingerprint
from app.ledger.erasure import _foreign
from app.ledger.record_identity import BESIDE_BODIES_BYTES_MAX
from app.runtime import log
from app.runtime.filesystem import PRIVATE_DIRECTORY, PRIVATE_FILE
from app.settings.model import Settings
from tests.support.checkout import ROOT
from tests.support.processes import Station, hook, worker
from tests.support.recorded import export, exported
from tests.support.servers import api_key, receiving
from tests.support.waiting import wait_until

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
TABLE = PAGE[PAGE.index("## What is kept where") : PAGE.index("## Every host")]
HOSTS = PAGE[PAGE.index("## Every host") :]


def told(pattern: str) -> str:
    found = re.search(pattern, PAGE)
    assert found is not None, pattern
    return found[1]


def test_how_long_and_how_much_is_kept_is_what_the_settings_say() -> None:
    assert int(told(r"`maxSpoolAge` \((\d+) days\)")) * 86_400_000 == Settings().max_spool_age_ms
    assert int(told(r"`maxSpoolSize` \((\d+) bytes\)")) == Settings().max_spool_bytes
    assert int(told(r"for good, up to (\d+) MB")) * 10**6 == BESIDE_BODIES_BYTES_MAX
    assert {int(size) * 10**6 for size in re.findall(r"`maxSpoolAge`, (\d+) MB at most", PAGE)} == {
        recover.KEPT_BYTES_MAX
    }
    assert int(told(r"(\d+) MB of each and 1 MB of the one before")) * 10**6 == log.BYTES_MAX
    assert int(told(r"\((\d+) bits of each\)")) == 4 * MARK_DIGITS
    assert len(["two", "damaged", "ledgers"]) - 1 == recover.KEPT


def test_the_modes_are_those_of_the_program() -> None:
    assert told(r"Folders have mode `(\d+)`") == f"{PRIVATE_DIRECTORY:04o}"
    assert told(r"files `(\d+)`") == f"{PRIVATE_FILE:04o}"


def test_the_hosts_are_those_of_the_program() -> None:
    endpoint = Settings().endpoint
    meant = {endpoint, *(read_back_url(endpoint, api_key(region=region)) for region in ("", "eu"))}
    named = set(re.findall(r"`([a-z.]+\.[a-z]+)`", HOSTS))
    assert named == {re.sub(r"https://([^/]+).*", r"\1", str(url)) for url in meant}


def test_no_module_but_the_transport_opens_a_connection() -> None:
    """And `receiver.background`, which asks the receiver that a command has started, on this machine."""
    opens = re.compile(
        r"httpx\.(get|post|Client|HTTPTransport)\(|urlopen|http\.client|create_connection|\.connect_tcp\("
    )
    found = {path for path in (ROOT / "app").rglob("*.py") if opens.search(path.read_text("utf-8"))}
    assert found == {ROOT / "app" / "exporters" / "transport.py", ROOT / "app" / "receiver" / "background.py"}


def test_a_spool_in_use_holds_the_files_of_the_table_in_their_modes_and_no_key(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with receiving(tmp_path / "receiver.db") as receiver:
        station = Station(tmp_path / "home", receiver.url)
        with worker(station), hook(station) as process:
            process.show(export(exported()[0]))
            wait_until(lambda: station.counts().delivered > 0)
            files = [path for path in station.spool.rglob("*") if path.is_file()]
            folders = [station.spool, *(path for path in station.spool.rglob("*") if path.is_dir())]
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {PRIVATE_FILE}
            assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {PRIVATE_DIRECTORY}
            assert not [path for path in files if station.key.encode() in path.read_bytes()]
            assert list(_foreign(station.spool / "ledger.db")) == []
            names = {path.relative_to(station.spool).parts[0] for path in files}
            process.end()
    for name in names - {".gitignore"}:
        words = [name, re.sub(r"^(ledger|queue)\.db", "", name), f"{name}/", re.sub(r".*(\.lock)$", r"*\1", name)]
        assert any(f"`{word}`" in TABLE for word in words if word), name


def test_of_a_key_the_ledger_keeps_a_salted_hash(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    one, other = (Station(tmp_path / "home" / name, "http://127.0.0.1:9") for name in "ab")
    for station in (one, other):
        station.home.mkdir()
    with one.ledger() as db, other.ledger() as another:
        assert fingerprint(db, one.key) != fingerprint(another, one.key)


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/privacy.md"])
def test_every_file_and_test_that_is_named_is_there(name: str) -> None:
    for path in re.findall(r"`((?:docs|tests)/[\w./-]+)`", (ROOT / name).read_text("utf-8")):
        assert (ROOT / path).exists(), path

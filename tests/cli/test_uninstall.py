"""`uninstall`: what it lists is what it does, and nothing of anybody else's goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.operations.uninstall import command_for_the_rest
from app.runtime.filesystem import draft_name
from app.runtime.liveness import Announced
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station
from tests.support.typed_commands import typed
from tests.system.test_cli import complaint


@pytest.fixture
def station(tmp_path: Path) -> Station:
    """One with everything that there can be."""
    home = tmp_path / "home"
    home.mkdir()
    station = Station(home, "http://127.0.0.1:9")
    assert typed(station, "install-plugin").returncode == 0
    with station.ledger() as db:
        LedgerBench(db).put(version())
    for path in ("config/opencode-helicone/.env", "data/opencode-helicone-receiver/store.db"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text("")
    return station


def ours(station: Station) -> set[str]:
    """What lies in the home; of a ledger the file alone."""
    names = (str(path.relative_to(station.home)) for path in station.home.rglob("*") if path.is_file())
    return {name for name in names if not name.endswith(("-wal", "-shm"))}


def test_without_a_terminal_it_lists_and_wants_a_word(station: Station) -> None:
    before = ours(station)
    done = typed(station, "uninstall", "--purge")
    assert done.returncode == 2
    assert "say --yes" in done.stderr
    assert f"goes:  the queue, {station.spool}, in which 1 job waits" in done.stdout
    assert ours(station) == before


def test_the_plugin_goes_and_the_rest_stays(station: Station) -> None:
    plugin = station.home / "config" / "opencode" / "plugin" / "opencode-helicone.js"
    done = typed(station, "uninstall", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"goes:  {plugin}" in done.stdout
    assert f"stays: the queue, {station.spool}" in done.stdout
    assert "--purge takes these, too" in done.stdout
    assert not plugin.exists()
    assert station.counts().pending == 1
    again = typed(station, "uninstall", "--yes")
    assert again.returncode == 0
    assert "the plugin is not installed here" in again.stdout


def test_what_a_person_wrote_into_opencodes_files_is_told_as_what_stays(station: Station) -> None:
    file = station.home / "config" / "opencode" / "opencode.json"
    file.write_text(
        '{\n  "plugin": [\n    "./other.js",\n    ["./plugin/opencode-helicone.js", {"enable": true}]\n  ]\n}'
    )
    before = file.read_text()
    done = typed(station, "uninstall", "--yes")
    assert f"stays: {file} line 4 names the plugin: take it out" in done.stdout.splitlines()
    assert file.read_text() == before


def test_purged_nothing_is_left(station: Station) -> None:
    for folder in (station.home / "config" / "opencode-helicone", station.spool):
        (folder / draft_name(".env")).write_text("HELICONE_API_KEY=of a process that was killed")
    done = typed(station, "uninstall", "--purge", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert ours(station) == set()
    assert not station.spool.exists()
    assert not (station.home / "config" / "opencode-helicone").exists()
    assert typed(station, "uninstall", "--purge", "--yes").returncode == 0


def test_what_others_put_there_stays_and_is_named(station: Station) -> None:
    mine = station.spool / "notes.txt"
    mine.write_text("mine")
    done = typed(station, "uninstall", "--purge", "--yes")
    assert f"{mine} stays: it is not of this program" in done.stdout
    assert ours(station) == {"spool/notes.txt"}


def test_nothing_is_purged_under_a_running_opencode(station: Station) -> None:
    hook = Announced(station.spool / "hooks")
    told = complaint(typed(station, "uninstall", "--purge", "--yes"), 1)
    assert "quit it, then type the same again" in told
    assert station.counts().pending == 1
    hook.withdraw()
    assert typed(station, "uninstall", "--purge", "--yes").returncode == 0
    assert ours(station) == set()


def test_settings_that_cannot_be_used_purge_nothing(station: Station) -> None:
    (station.home / "config" / "opencode-helicone" / "config.toml").write_text("not toml")
    assert "not TOML" in complaint(typed(station, "uninstall", "--purge", "--yes"), 1)
    assert typed(station, "uninstall", "--yes").returncode == 0


@pytest.mark.parametrize(
    ("prefix", "command"),
    [
        ("/home/me/.local/share/uv/tools/opencode-helicone", "uv tool uninstall opencode-helicone"),
        ("/home/me/.local/share/pipx/venvs/opencode-helicone", "pipx uninstall opencode-helicone"),
        ("/srv/venv", "/srv/venv/bin/python -m pip uninstall opencode-helicone"),
    ],
)
def test_the_program_itself_goes_as_it_came(prefix: str, command: str) -> None:
    assert command_for_the_rest(Path(prefix)) == command

"""Commands that only look: where there is no queue they say so, and make none."""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest

from app.cli.tail import watch
from app.database.connection import Replaced
from app.database.open import open_if_made, open_ledger
from app.ledger.listing import STATES
from app.operations.stats import GROUPS
from app.operations.tail import Tail
from app.operations.titles import Titles
from app.sources.opencode.store import Store, store_file
from tests.sources.opencode.test_store import built
from tests.support.processes import Station
from tests.support.recorded import export
from tests.support.typed_commands import typed
from tests.system.test_cli import commands, complaint

MAKE = {"backfill", "flush", "hook", "import", "migrate", "receiver", "setup", "worker"}
"""They write to a queue. (`setup` may start a receiver; the others make the queue.)"""
SERVES = {"web"}
"""It looks until it is told to end: that it makes nothing is in `tests/web/test_pages.py`."""
CENTRE = {
    "fleet dead list": ("a",),
    "fleet dead purge": ("a", "--all", "--yes"),
    "fleet dead retry": ("a", "--all", "--yes"),
    "fleet metrics": (),
    "fleet status": (),
    "fleet tenant add": ("a",),
    "fleet tenant list": (),
    "fleet tenant remove": ("a",),
    "fleet tenant set": ("a", "--bytes-max", "0"),
    "fleet token add": ("a", "b"),
    "fleet token list": (),
    "fleet token revoke": ("a", "b"),
    "intake": (),
}
"""Of a database on a server, which no variable names here."""
LOOK = {
    "audit": (),
    "config show": (),
    "dead list": (),
    "dead purge": ("--all", "--yes"),
    "dead retry": ("--all", "--yes"),
    "dead show": ("abc",),
    "destination adopt": ("1", "--yes"),
    "destination forget": ("1", "--yes"),
    "destination list": (),
    "doctor": (),
    "install-plugin": ("--dry-run",),
    "jobs list": (),
    "jobs show": ("abc",),
    "metrics": (),
    "preview": ("ses_1",),
    "recall": ("--match", "x", "--yes"),
    "sent": (),
    "stats": (),
    "status": (),
    "tail": (),
    "uninstall": (),
    "uninstall-plugin": (),
    "verify": (),
    "version": (),
}


@pytest.fixture
def station(tmp_path: Path) -> Station:
    (tmp_path / "home" / "data" / "opencode").mkdir(parents=True)
    made = Station(tmp_path / "home", "http://127.0.0.1:9")
    built(store_file(made.environ), export("a_simple"))
    return made


def test_of_every_command_it_is_known_whether_it_makes_a_queue() -> None:
    assert MAKE | SERVES | set(CENTRE) | set(LOOK) == set(commands())


@pytest.mark.parametrize("command", sorted(LOOK | CENTRE))
def test_to_look_where_nothing_is_makes_nothing(station: Station, command: str) -> None:
    before = set(station.home.rglob("*"))
    done = typed(station, *command.split(), *(LOOK | CENTRE)[command])
    assert "internal error" not in done.stderr
    assert set(station.home.rglob("*")) == before


def test_it_is_said_that_there_is_no_queue(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    for command in (("jobs", "list"), ("sent",), ("dead", "list"), ("tail",)):
        caplog.clear()
        typed(station, *command)
        assert caplog.messages == [f"there is no queue in {station.spool} yet"]
    assert f"there is no queue in {station.spool} yet" in typed(station, "status").stdout


def test_a_file_where_the_queue_should_be_is_told_of(station: Station) -> None:
    station.spool.touch()
    done = typed(station, "status")
    assert (done.returncode, "is a file" in done.stderr) == (1, True)


def test_what_is_watched_is_not_made_again_when_it_was_purged(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ledger(station.spool).close()
    looks = iter(range(3))

    def sleep(_: float) -> None:
        match next(looks):
            case 0:
                shutil.rmtree(station.spool)
            case 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert "ok" in typed(station, "status", "--watch").stdout
    assert not station.spool.exists()


def test_what_is_followed_is_not_made_again_either_and_is_followed_when_somebody_makes_it(station: Station) -> None:
    open_ledger(station.spool).close()
    there: list[bool] = []

    def pause() -> bool:
        if len(there) == 0:
            shutil.rmtree(station.spool)
        elif len(there) == 2:
            open_ledger(station.spool).close()
        there.append(station.spool.exists())
        return len(there) < 5

    watch(station.spool, Tail(Titles(Store(station.home / "none"))), lambda _: None, 1, pause=pause)
    assert there == [False, False, True, True, True]


def test_an_empty_ledger_in_memory_ends_as_soon_as_there_is_one(spool: Path) -> None:
    with closing(open_if_made(spool)) as db:
        assert db.execute("select count(*) from job").fetchone()[0] == 0
        open_ledger(spool).close()
        with pytest.raises(Replaced):
            db.execute("select count(*) from job")


def test_an_empty_argument_is_a_variable_that_is_not_set(station: Station) -> None:
    for command in (("dead", "show", ""), ("jobs", "list", "--session", ""), ("sent", "")):
        assert "an argument is empty" in complaint(typed(station, *command), 2)


def test_a_value_that_is_none_is_answered_with_those_that_there_are(station: Station) -> None:
    for command, known in ((("jobs", "list", "--state", "foo"), STATES), (("stats", "--by", "foo"), GROUPS)):
        done = typed(station, *command)
        assert (done.returncode, f"'foo' is none; there are {', '.join(known)}" in done.stderr) == (2, True)

"""Broken lines and rows through a hook, broken files through `import`, a few; `make fuzz` is the long form."""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from app.backfill.import_files import import_files
from app.capture.daemon import Daemon
from app.capture.pipe_reader import PipeReader
from app.sources.opencode.export_files import FILE_BYTES_MAX, File
from app.sources.opencode.store import Store, store_file
from tests.stress.fuzz import LINES_PER_SESSION, compare, compare_import, first_line, machine, remember, sources
from tests.support import mutants
from tests.support.mutants import Expected
from tests.support.processes import Station

LINES = 200
FILES = 100
SEED = 7 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)


@pytest.fixture
def dice() -> random.Random:
    """Its seed is said where a test fails; with CI=1 it is the same every time."""
    sys.stdout.write(f"seed {SEED}\n")
    return random.Random(SEED)  # noqa: S311 - to break things, not to protect them


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return machine(home)


def feed(pipe: BinaryIO, lines: list[bytes]) -> None:
    with pipe:
        pipe.writelines(line + b"\n" for line in lines)


@pytest.mark.slow
def test_of_broken_lines_each_is_counted_or_leaves_all_of_its_jobs(dice: random.Random, station: Station) -> None:
    sessions = remember(dice, station, LINES // LINES_PER_SESSION)
    lines = [first_line(), *(mutants.line(dice, sessions) for _ in range(LINES))]
    expected = Expected(Store(store_file(station.environ)))
    for line in lines:
        expected.feed(line, sources(station))
    reader, writer = os.pipe()
    pipe_reader = PipeReader(reader)
    feeding = threading.Thread(target=feed, args=(os.fdopen(writer, "wb"), lines))
    feeding.start()
    Daemon(pipe_reader, sources(station)).serve()
    feeding.join(20)
    os.close(reader)
    became = compare(station, [expected])
    assert became["notices taken"] > LINES // 5


@pytest.mark.slow
def test_of_broken_files_each_is_named_or_leaves_all_of_its_jobs(dice: random.Random, station: Station) -> None:
    files = [File(f"file-{number}", mutants.export_file(dice)) for number in range(FILES)]
    became = compare_import(files, list(import_files(files, sources(station))))
    assert became["file imported"] > FILES // 5
    with station.ledger() as db:
        mutants.audit(db)


def test_a_file_larger_than_any_export_is_refused_without_being_parsed(tmp_path: Path, station: Station) -> None:
    large = tmp_path / "disk.img"
    with large.open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    (result,) = import_files([File(str(large))], sources(station))
    assert (result.outcome, result.reason) == ("failed", "it is larger than 512 MiB")

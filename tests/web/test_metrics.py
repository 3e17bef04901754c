"""The numbers for Prometheus, by its own parser and, where it is installed, by promtool."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.database.open import open_ledger
from app.operations.metrics import exposition, write_textfile
from app.runtime import clock
from app.web.site import stamp
from tests.support.long_use import LongUse

PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def use(tmp_path_factory: pytest.TempPathFactory) -> LongUse:
    return LongUse(tmp_path_factory.mktemp("use"), clock.now_ms(), 5, 30).make()


def samples(data: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(data.decode())
        for sample in family.samples
    }


def test_they_say_what_the_queue_says(use: LongUse) -> None:
    found = samples(exposition(use.sources.load(), use.now_ms))
    with closing(open_ledger(use.spool)) as db:
        for state, jobs in db.execute("select state, sum(jobs) from tally group by 1"):
            labels = frozenset({("destination", "1"), ("state", state)})
            assert found["opencode_helicone_jobs", labels] == jobs
        (counted,) = db.execute("select sum(count) from counter where kind = 'redacted'").fetchone()
    assert found["opencode_helicone_redactions_total", frozenset({("rule", "assignment")})] == counted
    assert found["opencode_helicone_destination_up", frozenset({("destination", "1")})] == 1


def test_a_destination_that_is_down_is_not_up(tmp_path: Path) -> None:
    use = LongUse(tmp_path, clock.now_ms(), 1, 2).make()
    with closing(open_ledger(use.spool)) as db:
        db.execute("update destination set health = 'down', pause_reason = 'refused', probe_ms = ?", (use.now_ms,))
    found = samples(exposition(use.sources.load(), use.now_ms))
    assert found["opencode_helicone_destination_up", frozenset({("destination", "1")})] == 0


def test_a_look_is_no_sign_of_life(tmp_path: Path) -> None:
    use = LongUse(tmp_path, clock.now_ms(), 1, 2).make()
    before = stamp(use.spool)
    written_s = (use.spool / "ledger.db").stat().st_mtime
    for _ in range(2):
        found = samples(exposition(use.sources.load(), int(written_s * 1000) + 3_600_000))
        assert found["opencode_helicone_heartbeat_age_seconds", frozenset()] == pytest.approx(3_600, abs=1)
        for file in use.spool.glob("ledger.db-wal"):
            assert file.stat().st_size == 0
            os.utime(file, (written_s + 3_600, written_s + 3_600))
    assert stamp(use.spool) == before


def test_no_session_no_path_and_no_key_is_told(use: LongUse) -> None:
    text = exposition(use.sources.load(), use.now_ms).decode()
    assert "ses_" not in text
    assert "/" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    names = {label for name, labels in samples(text.encode()) for label, _ in labels}
    assert names == {"destination", "state", "host", "version", "rule", "outcome"}


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "opencode.prom"
    for data in (b"a 1\n", b"b 2\n"):
        write_textfile(path, data)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o644)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FileNotFoundError, match=r"opencode\.prom'$"):
        write_textfile(tmp_path / "none" / "opencode.prom", b"")


@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "folder"])
def test_what_is_no_file_is_left(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "opencode.prom", tmp_path / "target"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(target)
            if kind == "link":
                target.write_bytes(b"")
    before = path.lstat()
    with pytest.raises(OSError, match="no regular file") as told:
        write_textfile(path, b"a 1\n")
    assert told.value.filename == str(path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert not target.exists() or target.read_bytes() == b""


@pytest.mark.slow
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")
def test_promtool_has_nothing_to_say(use: LongUse) -> None:
    data = exposition(use.sources.load(), use.now_ms)
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=data, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

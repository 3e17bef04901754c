"""The numbers for Prometheus, by its own parser and, where it is installed, by promtool."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.database.open import open_ledger
from app.operations.metrics import exposition, write_textfile
from app.runtime import clock
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
    with pytest.raises(FileNotFoundError):
        write_textfile(tmp_path / "none" / "opencode.prom", b"")


@pytest.mark.slow
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")
def test_promtool_has_nothing_to_say(use: LongUse) -> None:
    data = exposition(use.sources.load(), use.now_ms)
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=data, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

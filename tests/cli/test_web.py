"""`web` and `metrics` as a person and a scraper meet them: real processes, and what is missing without the extra."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.cli import web
from app.pages.loopback import listening
from app.receiver import background
from tests.support.checkout import ROOT
from tests.support.processes import Station
from tests.support.recorded import export_files
from tests.support.typed_commands import typed

PROMTOOL = shutil.which("promtool")


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    made = Station(home, "http://127.0.0.1:9")
    assert typed(made, "import", *map(str, export_files("a_simple"))).returncode == 0
    return made


@pytest.mark.slow
def test_the_printed_address_opens_the_pages_until_ctrl_c(station: Station) -> None:
    command = [sys.executable, "-m", "app", "web", "--port", "0", "--spool-directory", str(station.spool)]
    process = subprocess.Popen(
        command, env=station.environ, cwd=station.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        (address,) = re.findall(r"^open (http://127\.0\.0\.1:\d+/\?token=\S+)$", process.stdout.readline())
        with httpx.Client(trust_env=False, follow_redirects=True) as client:
            assert "Overview" in client.get(address).text
            jobs = client.get(httpx.URL(address).join("/jobs?state=pending")).text
            # What is to be typed means the same queue.
            assert f"opencode-helicone flush --spool-directory {station.spool}" in jobs
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.communicate()[1] == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("host", ["::", "192.168.1.1", "example.com"])
def test_it_listens_on_this_machine_only(station: Station, host: str) -> None:
    done = typed(station, "web", "--host", host, "--port", "0")
    assert (done.returncode, "loopback" in done.stderr) == (1, True)


def test_a_port_that_is_taken_is_told_with_a_way_out(station: Station) -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = typed(station, "web", "--port", str(port))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"port {port} is taken" in line
    assert line.endswith("--port 0 takes a free one")


def test_the_receiver_leaves_the_port_of_these_pages_alone() -> None:
    assert background.WEB_PORT == web.PORT


def test_metrics_are_printed_or_written(station: Station) -> None:
    printed = typed(station, "metrics")
    assert printed.returncode == 0
    assert 'opencode_helicone_jobs{destination="1",state="pending"} 2.0' in printed.stdout
    path = station.home / "opencode.prom"
    assert typed(station, "metrics", "--textfile", str(path)).stdout == ""
    assert 'state="pending"} 2.0' in path.read_text("utf-8")
    failed = typed(station, "metrics", "--textfile", str(station.home / "none" / "x.prom"))
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("command", [["web", "--port", "0"], ["metrics"]])
def test_without_the_extra_one_line_says_what_to_install(
    station: Station, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [one for one in sys.modules if one.startswith(("prometheus_client", "app.web", "app.operations.met"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    done = typed(station, *command)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "opencode-helicone[web]" in done.stderr


# --- the dashboard ---------------------------------------------------------------------------------------------------

DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))
QUERIES = [target["expr"].replace("$machine", ".*") for panel in DASHBOARD["panels"] for target in panel["targets"]]
BEFORE_THEY_COUNT = {"opencode_helicone_failed_attempts_total", "opencode_helicone_lost_jobs_total"}
BEFORE_THEY_COUNT |= {"opencode_helicone_redactions_total"}


def test_the_dashboard_asks_for_numbers_that_there_are(station: Station) -> None:
    told = typed(station, "metrics").stdout
    there = set(re.findall(r"^(opencode_helicone_\w+)[ {]", told, re.MULTILINE)) | BEFORE_THEY_COUNT
    asked = {name for query in QUERIES for name in re.findall(r"opencode_helicone_\w+", query)}
    assert len(asked) > 8
    assert asked <= there
    page = (ROOT / "docs" / "web.md").read_text("utf-8")
    shorthand = {f"opencode_helicone_{name}" for name in ("held_bytes", "held_bytes_max", "hooks")}
    named = set(re.findall(r"opencode_helicone_\w+", page)) | shorthand
    assert there <= named


@pytest.mark.slow
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")
def test_its_queries_are_queries(tmp_path: Path) -> None:
    rules = [{"record": f"a{number}", "expr": query} for number, query in enumerate(QUERIES)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}), "utf-8")
    done = subprocess.run([str(PROMTOOL), "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(QUERIES)} rules found" in done.stdout

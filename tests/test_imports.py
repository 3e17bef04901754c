"""How the program's modules import each other: never in a circle, and inside of a function only what is named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

INSIDE_OF_FUNCTIONS = {
    # Processes that load no command line, and a command line that starts no process, for the sake of their start.
    "app.capture.daemon": "80 ms: a hook does without the command line",
    "app.cli.main": "80 ms: the same",
    "app.exporters.otlp.encoder": "3 ms: a hook without such a destination",
    "app.capture.handler": "150 ms: a hook does without until its plugin says something",
    "app.capture.mended": "40 ms: hardly ever is a folder held",
    "app.operations.titles": "40 ms: a status without deliveries has no title to read",
    "app.sources.opencode.store": "the same",
    "app.database.schema": "of the two above: `ready` loads all that a newer program may be asked for",
    # These bring the HTTP client along, most commands do without it.
    "app.cli.setup_dialogue": "110 ms",
    "app.operations.flush": "100 ms",
    "app.operations.remote": "90 ms",
    "app.operations.send_test": "90 ms",
    "app.recall.compare": "90 ms",
    "app.verify.remote_check": "90 ms",
    "app.worker": "100 ms",
    # What the extra `fleet` brings.
    "app.fleet.worker": "the extra",
    "app.fleet.tenants": "the same",
    "app.fleet.presence": "the same",
    "app.operations.fleet": "the same",
    "app.intake.server": "the same",
    "app.transcript.parse": "20 ms: who asks OpenCode's store for titles alone does without",
    "app.settings.heard": "5 ms: hardly anybody has an intake",
    "app.delivery.intake": "6 ms: the same",
    "html": "0.7 MB: a worker to which nothing was refused",
    # On a terminal alone.
    "rich.console": "20 ms",
    "rich.progress": "30 ms",
    "app.receiver.background": "20 ms",
    "app.receiver.access": "the same",
    # The web servers, and Prometheus's client.
    "app.pages.loopback": "140 ms",
    "app.receiver.server": "150 ms",
    "app.web.server": "200 ms, and what the extra `web` brings",
    "app.web.site": "150 ms: the store's reading",
    "app.operations.metrics": "60 ms, and what the extra `web` brings",
    "app.operations.fleet_metrics": "the same",
}
"""By module: how much processor time its import takes a command that does without it, or another reason."""


@cache
def trees() -> dict[str, ast.Module]:
    """By module."""
    found = {}
    for path in sorted((ROOT / "app").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text("utf-8"))
    return found


def imports(node: ast.AST) -> Iterator[str]:
    """The modules that an import statement names; nothing for any other node."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in trees() else str(node.module)


def inside_of_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(node):
                yield from imports(inner)


def test_no_module_imports_itself_through_others() -> None:
    # A package is loaded before what is in it, and `app` itself, the version, by everybody.
    graph = {
        name: {one for node in ast.walk(tree) for one in imports(node)} & {*trees()} for name, tree in trees().items()
    }
    assert sum(map(len, graph.values())) > 500
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    "package", [str(path.parent.relative_to(ROOT)) for path in sorted((ROOT / "app").rglob("__init__.py"))]
)
def test_a_package_itself_imports_nothing(package: str) -> None:
    tree = trees()[".".join(Path(package).parts)]
    assert [one for node in ast.walk(tree) for one in imports(node)] == []


def test_what_is_imported_inside_of_functions_is_named_with_a_reason() -> None:
    assert {one for tree in trees().values() for one in inside_of_functions(tree)} == {*INSIDE_OF_FUNCTIONS}

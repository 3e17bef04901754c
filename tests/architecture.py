"""Draws `docs/architecture.md` from the imports in `app/`: packages as floors, each above all that it imports.

`python -m tests.architecture` writes the page; a test checks that it is current.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from tests.processes import ROOT

PAGE = ROOT / "docs" / "architecture.md"

Imports = Mapping[str, frozenset[str]]
"""By package, or module that stands alone at the top, which others it imports."""

HEAD = """# Which package knows which

Made from the imports by `python -m tests.architecture`; a test fails while it is not current. An arrow says "imports".
Arrows that follow from others are left out: a package may also import what lies further along its arrows. No arrow
goes upwards; `make walls` checks that, and the contracts in `pyproject.toml` say what else must not be imported.
"""


def module_of(path: Path, app: Path) -> str:
    parts = ("app", *path.relative_to(app).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path: Path, modules: frozenset[str]) -> set[str]:
    """Modules of `app` that a file imports anywhere, in functions too."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            named.update(inside & modules or {node.module})
    return named & modules


def package_of(module: str) -> str:
    """`app.cli.main` is in `cli`, `app.worker` stands alone."""
    return module.split(".")[1]


def read_imports(app: Path) -> Imports:
    paths = {module_of(path, app): path for path in sorted(app.rglob("*.py"))}
    modules = frozenset(paths) - {"app"}
    found: dict[str, set[str]] = {package_of(module): set() for module in modules}
    for module in modules:
        found[package_of(module)] |= {package_of(other) for other in imported_by(paths[module], modules)}
    return {package: frozenset(others - {package}) for package, others in found.items()}


def floors(imports: Imports) -> list[list[str]]:
    """From the top: each package one floor above the highest that it imports. Raises where imports form a ring."""
    rest = dict(imports)
    built: list[list[str]] = []
    while rest:
        floor = sorted(package for package, others in rest.items() if not others & rest.keys())
        if not floor:
            raise ValueError(f"packages that import each other: {', '.join(sorted(rest))}")
        built.append(floor)
        rest = {package: others for package, others in rest.items() if package not in floor}
    return built[::-1]


def reachable(package: str, imports: Imports) -> set[str]:
    """All that a package imports through others."""
    return {far for near in imports[package] for far in imports[near] | reachable(near, imports)}


def page(app: Path) -> str:
    imports = read_imports(app)
    lines = ["```mermaid", "flowchart TD"]
    for number, floor in enumerate(floors(imports)):
        lines += [f'  subgraph floor{number} [" "]', *(f"    {package}" for package in floor), "  end"]
    for package in sorted(imports):
        lines += [f"  {package} --> {other}" for other in sorted(imports[package] - reachable(package, imports))]
    return "\n".join([HEAD, *lines, "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page(ROOT / "app"), "utf-8")

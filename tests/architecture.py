"""Draws `docs/architecture.md`: packages on the floors that the layers contract gives them, arrows from the imports.

`python -m tests.architecture` writes the page; a test checks that it is current.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping

from tests.support.checkout import ROOT
from tests.test_imports import imports, trees

PAGE = ROOT / "docs" / "architecture.md"

Arrow = tuple[str, str]
"""A package, or a module that stands alone, and one that it imports."""

HEAD = """# Which package knows which

Made from the imports and the first contract in `pyproject.toml` by `python -m tests.architecture`; a test fails while
it is not current. A package imports only from floors below its own, and `make walls` checks that. Arrows that follow
from others are left out: a package may also import what lies further along its arrows. The other contracts say what
else must not be imported, above all that the hook's path stays light.
"""


def package_of(module: str) -> str:
    """`app.cli.main` is in `cli`, `app.worker` stands alone."""
    return module.split(".")[1]


def arrows(imported: Iterable[Arrow]) -> set[Arrow]:
    """Between packages, of those between modules."""
    found = {(package_of(module), package_of(other)) for module, other in imported}
    return {(package, other) for package, other in found if package != other}


def reachable(package: str, below: Mapping[str, Collection[str]]) -> set[str]:
    """All that a package imports through others."""
    return {far for near in below.get(package, ()) for far in {*below.get(near, ()), *reachable(near, below)}}


def drawn(floors: list[list[str]], found: set[Arrow]) -> list[str]:
    """The lines of the picture."""
    below: dict[str, set[str]] = {}
    for package, other in sorted(found):
        below.setdefault(package, set()).add(other)
    lines = ["flowchart TD"]
    for number, floor in enumerate(floors):
        lines += [f'  subgraph floor{number} [" "]', *(f"    {package}" for package in floor), "  end"]
    for package, others in below.items():
        lines += [f"  {package} --> {other}" for other in sorted(others - reachable(package, below))]
    return lines


def page() -> str:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"][0]
    floors = [re.findall(r"\w+", layer) for layer in (" ".join(contract["exhaustive_ignores"]), *contract["layers"])]
    imported = {
        (module, other)
        for module, tree in trees().items()
        for node in ast.walk(tree)
        for other in imports(node)
        if other in trees() and "." in other
    }
    existing = {package_of(module) for module in trees() if "." in module}
    standing = [[package for package in floor if package in existing] for floor in floors]
    picture = drawn([floor for floor in standing if floor], arrows(imported))
    return "\n".join([HEAD, "```mermaid", *picture, "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

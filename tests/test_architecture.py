"""The picture of the packages is what the imports say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture import PAGE, floors, page, reachable, read_imports
from tests.processes import ROOT


def tree(folder: Path, **modules: str) -> Path:
    """An `app` with these modules: `cli_main` is `app/cli/main.py`."""
    app = folder / "app"
    for name, text in modules.items():
        path = app.joinpath(*name.split("_")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return app


def test_the_picture_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(ROOT / "app"), "python -m tests.architecture writes it anew"


def test_imports_are_found_in_functions_and_by_either_form(tmp_path: Path) -> None:
    app = tree(
        tmp_path,
        cli_main="import os\nimport app.ledger.claims\nfrom app import worker\n",
        worker="def f():\n    from app.ledger import claims\n    from app.runtime.clock import now\n",
        ledger_claims="",
        runtime_clock="",
    )
    assert read_imports(app) == {
        "cli": {"ledger", "worker"},
        "worker": {"ledger", "runtime"},
        "ledger": set(),
        "runtime": set(),
    }


def test_a_package_stands_above_all_that_it_imports() -> None:
    imports = {name: frozenset(others) for name, others in {"a": "bc", "b": "c", "c": "", "d": ""}.items()}
    assert floors(imports) == [["a"], ["b"], ["c", "d"]]
    assert reachable("a", imports) == {"c"}


def test_packages_that_import_each_other_are_named() -> None:
    imports = {name: frozenset(others) for name, others in {"a": "b", "b": "a", "c": ""}.items()}
    with pytest.raises(ValueError, match=r"a, b$"):
        floors(imports)

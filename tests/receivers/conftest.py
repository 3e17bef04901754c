"""Everything here drives a receiver that `make receivers` installs."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("receivers")
    item.add_marker("slow")

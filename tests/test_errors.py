"""The tree of expected failures."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import app
from app import errors


def below(error: type[Exception], depth: int = 0) -> Iterator[tuple[str, int]]:
    yield error.__name__, depth
    for one in error.__subclasses__():
        yield from below(one, depth + 1)


def test_the_picture_shows_each_error_under_its_parent() -> None:
    for module in pkgutil.walk_packages(app.__path__, "app."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+Error) ", errors.__doc__ or "", re.MULTILINE)
    assert {(name, len(line) // 3) for line, name in drawn} == set(below(errors.AppError))

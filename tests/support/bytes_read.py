"""How much a redaction reads, counted: `python -m tests.support.bytes_read` prints it as JSON, text by text.

A search counts the bytes from where it begins to what it finds, or to where it may look no further; a match counts what
it matches. This needs a process of its own, in which each pattern of the program is compiled into one that counts.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterator
from typing import Any

import re2

from tests.support.checkout import ROOT

SHORT_BYTES, LONG_BYTES = 10_000, 100_000
_looked_at = 0


def _count(size: int) -> None:
    global _looked_at  # noqa: PLW0603 - one count for all patterns
    _looked_at += size + 1


class _Counting:
    """A pattern of `re` or `re2`."""

    def __init__(self, pattern: Any) -> None:
        self._of = pattern
        self.pattern = pattern.pattern

    def __getattr__(self, name: str) -> Any:
        def over_all(*arguments: Any, **named: Any) -> Any:
            _count(max((len(one) for one in arguments if isinstance(one, bytes | str)), default=0))
            return getattr(self._of, name)(*arguments, **named)

        return over_all

    def match(self, text: Any, start: int = 0, end: int = sys.maxsize) -> Any:
        return self._matched(self._of.match(text, start, min(end, len(text))), start)

    def fullmatch(self, text: Any, start: int = 0, end: int = sys.maxsize) -> Any:
        return self._matched(self._of.fullmatch(text, start, min(end, len(text))), start)

    def _matched(self, found: Any, start: int) -> Any:
        _count(found.end() - start if found else 0)
        return found

    def search(self, text: Any, start: int = 0, end: int = sys.maxsize) -> Any:
        found = self._of.search(text, start, min(end, len(text)))
        _count((found.end() if found else max(start, min(end, len(text)))) - start)
        return found

    def finditer(self, text: Any, start: int = 0, end: int = sys.maxsize) -> Iterator[Any]:
        at, upto = start, min(end, len(text))
        for found in self._of.finditer(text, start, upto):
            _count(found.end() - at)
            at = found.end()
            yield found
        _count(max(0, upto - at))


def _count_from_now_on() -> None:
    """Before the program's modules are read."""

    def counting(compiled: Any) -> Any:
        def compiled_here(*arguments: Any) -> Any:
            of = sys._getframe(1).f_globals["__name__"]
            return _Counting(compiled(*arguments)) if of.startswith("app.") else compiled(*arguments)

        return compiled_here

    re.compile = counting(re.compile)
    re2.compile = counting(re2.compile)


def main() -> None:
    _count_from_now_on()
    from app.privacy.literals import Search  # noqa: PLC0415 - its patterns count
    from app.privacy.redact import Redaction  # noqa: PLC0415 - its patterns count

    find = Search.find

    def counted_find(search: Search, data: bytes) -> list[tuple[int, int]]:
        _count(len(data))
        return find(search, data)

    patched: Any = Search
    patched.find = counted_find
    read = Redaction.compile([]).text

    def per_byte(unit: str, size: int) -> float:
        text = unit * (size // len(unit))
        before = _looked_at
        read(text)
        return (_looked_at - before) / len(text)

    texts = runpy.run_path(str(ROOT / "benchmarks" / "redaction.py"))["HOSTILE"]
    made = {name: [per_byte(unit, size) for size in (SHORT_BYTES, LONG_BYTES)] for name, unit in texts.items()}
    sys.stdout.write(json.dumps(made))


if __name__ == "__main__":
    main()

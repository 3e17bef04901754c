"""Texts that fit a pattern of gitleaks, made at random, and what its pattern begins with.

gitleaks' patterns are Go's. They are rewritten for Python's parser of regular expressions, whose tree is walked.
"""

from __future__ import annotations

import re
import string
from importlib import import_module
from random import Random
from typing import Any

_PARSER: Any = import_module("re._parser")  # CPython 3.11 and later; it has no public name
_IGNORE_CASE = int(re.IGNORECASE)
_ALNUM = string.ascii_letters + string.digits
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
_CATEGORIES = {
    "CATEGORY_DIGIT": string.digits,
    "CATEGORY_WORD": _ALNUM + "_",
    "CATEGORY_SPACE": " ",
    "CATEGORY_NOT_SPACE": _PRINTABLE.replace(" ", ""),
}
_FILLER = string.ascii_lowercase + 9 * " "
_ANYTHING = 80
"""A class of more characters means "whatever": letters and digits stand for it, as they do in secrets."""
_MORE_MAX = 100
"""A repetition is so much longer than it must be, at most."""
_FLAGS = re.compile(r"\(\?([is]+)\)")


def tree(pattern: str) -> Any:
    return _PARSER.parse(in_python(pattern))


def in_python(pattern: str) -> str:
    """Go lets `(?i)` stand anywhere, and it counts to the end of its group; Python wants `(?i:…)`."""
    pattern = pattern.replace("[[:alnum:]]", "[a-zA-Z0-9]").replace(r"\z", r"\Z")
    made: list[str] = []
    opened: list[list[str]] = [[]]
    """For each open group the flags that were set inside it."""
    for token in re.findall(r"\(\?[is]+\)|\(\?P<\w+>|\(\?[-is]*:|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", pattern, re.DOTALL):
        if flags := _FLAGS.fullmatch(token):
            opened[-1].append(f"(?{flags[1]}:")
            made.append(opened[-1][-1])
        elif token == "|":
            made += (")" * len(opened[-1]), token, *opened[-1])
        elif token == ")":
            made += (")" * len(opened.pop()), token)
        else:
            if token.startswith("("):
                opened.append([])
            made.append(token)
    return "".join(made) + ")" * len(opened[0])


def fixed_letters(pattern: str) -> int:
    """How many letters are fixed where it begins: 4 for `ghp_[a-z]{36}` and for `(?:ab|cd)_x[0-9]`."""
    count, _ = _fixed(tree(pattern))
    return count


def _fixed(nodes: Any) -> tuple[int, bool]:
    """The number, and whether that is all there is."""
    total = 0
    nodes = list(nodes)
    for at, (operation, value) in enumerate(nodes):
        if str(operation) == "MAX_REPEAT" and value[:2] == (0, 1):
            without, _ = _fixed(nodes[at + 1 :])
            inside, _ = _fixed([*value[2], *nodes[at + 1 :]])
            return total + min(without, inside), False
        count, is_all = _fixed_at(str(operation), value)
        total += count
        if not is_all:
            return total, False
    return total, True


def _fixed_at(operation: str, value: Any) -> tuple[int, bool]:
    if operation == "AT":
        return 0, True
    if operation == "LITERAL":
        return 1, True
    if operation == "SUBPATTERN":
        return _fixed(value[3])
    if operation == "BRANCH":
        counted = [_fixed(branch) for branch in value[1]]
        return min(count for count, _ in counted), all(is_all for _, is_all in counted)
    if operation == "IN" and all(str(kind) == "LITERAL" for kind, _ in value):
        return 1, True  # one of a few letters, as Python writes `(?:a|b)`
    return 0, False


def sample(pattern: str, dice: Random) -> str:
    """A text that fits. Where case does not matter, half of all texts are as the pattern is written."""
    return _Sampler(dice, mixes_case=dice.random() < 0.5).text(tree(pattern), 0)


class _Sampler:
    def __init__(self, dice: Random, *, mixes_case: bool) -> None:
        self._dice = dice
        self._mixes_case = mixes_case

    def text(self, nodes: Any, flags: int) -> str:
        return "".join(self._one(str(operation), value, flags) for operation, value in nodes)

    def _one(self, operation: str, value: Any, flags: int) -> str:
        match operation:
            case "AT":
                made = ""
            case "LITERAL":
                made = chr(value)
            case "ANY":
                made = "."  # a dot that was left unescaped: hooks.slack.com
            case "NOT_LITERAL":
                made = self._dice.choice(_ALNUM)
            case "IN":
                made = self._dice.choice(self._letters(value, flags))
            case "BRANCH":
                made = self.text(self._dice.choice(value[1]), flags)
            case "SUBPATTERN":
                _, added, removed, inner = value
                made = self.text(inner, (flags | added) & ~removed)
            case "MAX_REPEAT" | "MIN_REPEAT":
                made = self._repeated(*value, flags=flags)
            case _:
                raise NotImplementedError(operation)
        return made

    def _repeated(self, least: int, most: Any, inner: Any, *, flags: int) -> str:
        times = self._dice.randint(least, min(int(most), least + _MORE_MAX))
        if _is_anything(inner):
            return "".join(self._dice.choices(_ALNUM if least else _FILLER, k=times))
        return "".join(self.text(inner, flags) for _ in range(times))

    def _letters(self, items: Any, flags: int) -> str:
        letters = "".join(sorted({letter for kind, value in items for letter in _members(str(kind), value)}))
        if any(str(kind) == "NEGATE" for kind, _ in items):
            letters = "".join(letter for letter in _PRINTABLE if letter not in letters)
        if len(letters) > _ANYTHING:
            return _ALNUM
        is_range = any(str(kind) == "RANGE" for kind, _ in items)
        if is_range and flags & _IGNORE_CASE and self._mixes_case:
            letters = "".join(sorted({*letters, *letters.upper(), *letters.lower()}))
        return letters


def _is_anything(nodes: Any) -> bool:
    """`.` or `(?s:.)`: where as little as nothing may stand, it is no part of a secret."""
    operation, value = nodes[0]
    return str(operation) == "ANY" or (str(operation) == "SUBPATTERN" and _is_anything(value[3]))


def _members(kind: str, value: Any) -> str:
    match kind:
        case "LITERAL":
            return chr(value)
        case "RANGE":
            return "".join(map(chr, range(value[0], value[1] + 1)))
        case "CATEGORY":
            return _CATEGORIES[str(value)]
        case "NEGATE":
            return ""
    raise NotImplementedError(kind)

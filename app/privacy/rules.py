r"""What a secret looks like: the built-in rules.

    ghp_…  sk-ant-…  AKIA…              keys, known by their beginning (app.privacy.keys)
    -----BEGIN … PRIVATE KEY-----       places: private keys, headers, cookies, URLs (app.privacy.places)
    Authorization: …  ://user:…@
    password = "…"                      assignments, known by their name (app.privacy.named_values)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from app.privacy.decode import View
from app.privacy.keys import KEYS
from app.privacy.literals import Literal
from app.privacy.named_values import ASSIGNMENT, WORDS, assigned
from app.privacy.places import PLACES
from app.privacy.rule import Rule, find, linear


def _assignment(view: View, found: Any) -> tuple[int, int] | None:
    return assigned(view.data, found)


_NAMES = Rule(
    "assignment",
    rb"(?i)" + ASSIGNMENT,
    _assignment,
    tuple(Literal(word, any_case=True) for word in WORDS),
    linear,
    window=80,
)
RULES = (*KEYS, *PLACES, _NAMES)
_LONG_REST_MIN = 20
Heads = Mapping[int, Sequence[int]]
"""Where in a view the heads of each rule (its number in RULES) begin."""


def secrets(view: View, heads_of: Heads) -> Iterator[tuple[str, int, int]]:
    """The name of each rule, with a range that it finds."""
    for number in sorted(heads_of):
        for start, end in find(RULES[number], view, heads_of[number]):
            yield RULES[number].name, start, end


def broken_secrets(
    view: View, heads_of: Heads, begun: AbstractSet[tuple[str, int]]
) -> Iterator[tuple[str, int, int]]:
    """The same in a view whose line ends were taken out: what goes over one.

    What is known by its place alone must have `begun` (rule and start in the text) in the line before: it is a secret
    without the next line, too. Only a next line that is long and random as a key needs no such beginning.
    """
    for number in sorted(heads_of):
        rule = RULES[number]
        for start, end in find(rule, view, heads_of[number], view.starts):
            rest = end - view.starts[bisect_right(view.starts, start)]
            if rule.is_key or rest >= _LONG_REST_MIN or (rule.name, view.source(start, end)[0]) in begun:
                yield rule.name, start, end

r"""Rules: lists all built-in rules, and asks each of them.

ghp_…  sk-ant-…  AKIA…              keys, known by their beginning (app.privacy.keys)
-----BEGIN … PRIVATE KEY-----       places: private keys, headers, cookies, URLs (app.privacy.places)
Authorization: …  ://user:…@
password = "…"                      assignments, known by their name (app.privacy.named_values)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache

from app.privacy.decode import View
from app.privacy.keys import keys
from app.privacy.literals import Literal
from app.privacy.named_values import EXACT_HEADS, HEADS, PORT, named_values
from app.privacy.places import PLACES
from app.privacy.rule import Rule, end_over_cuts, find

_NAMED = Rule(
    "assignment",
    b"",
    lambda _view, _found: None,
    (
        *(Literal(word, any_case=True) for word in HEADS),
        *(Literal(word) for word in EXACT_HEADS),
        Literal(PORT, is_pattern=True),
    ),
)
Heads = Mapping[int, Sequence[int]]
"""Where in a view the heads of each rule (its number in `rules`) begin."""
_LONG_REST_MIN = 20


@cache
def rules() -> tuple[Rule, ...]:
    return (*keys(), *PLACES, _NAMED)


def secrets(view: View, heads_of: Heads) -> Iterator[tuple[str, int, int]]:
    """The name of each rule, with a range that it finds."""
    for number in sorted(heads_of):
        rule, heads = rules()[number], heads_of[number]
        for start, end in named_values(view.data, heads) if rule is _NAMED else find(rule, view, heads):
            yield rule.name, start, end


def broken_secrets(view: View, heads_of: Heads, begun: AbstractSet[tuple[str, int]]) -> Iterator[tuple[str, int, int]]:
    """The same in a view whose line ends were taken out: what goes over one.

    What is known by its place alone must have `begun` (rule and start in the text) in the line before: it is a secret
    without the next line, too. Only a next line that is long and random as a key needs no such beginning.
    """
    for number in sorted(heads_of):
        rule, heads = rules()[number], heads_of[number]
        for start, end in _broken_values(view, heads) if rule is _NAMED else find(rule, view, heads, view.starts):
            rest = end - view.starts[bisect_right(view.starts, start)]
            if rule.is_key or rest >= _LONG_REST_MIN or (rule.name, view.source(start, end)[0]) in begun:
                yield rule.name, start, end


def _broken_values(view: View, heads: Sequence[int]) -> Iterator[tuple[int, int]]:
    for start, upto in named_values(view.data, heads):
        cuts = view.starts[bisect_right(view.starts, start) : bisect_left(view.starts, upto)]
        end = end_over_cuts(_NAMED, view.data, start, upto, cuts) if cuts else upto
        if cuts and end > cuts[0]:
            yield start, end

"""What is found around literals is what is found when every rule looks at all of every view."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from app.privacy.decode import View, _meaning, joined, layers, unpacked
from app.privacy.literals import Literal
from app.privacy.redact import Redaction, finished
from app.privacy.rules import Heads, broken_secrets, rules, secrets
from app.privacy.vendors import VENDORS
from tests.privacy.test_vendors import example
from tests.support.dress import DRESSES, in_base64, in_json, in_json_twice, in_url, in_wrapped_base64, numbered
from tests.support.fake_secrets import SAMPLES, Sample

REDACTION = Redaction.compile([])
WORDS = (
    *("def", "return", "self", "key", "value", "token", "=", "(", ")", ":", "[", "]", "{", "}", "\\", "%", ",", "."),
    *('"', "'", "#", "import", "password", "x1", "y2", "--", "//", "\n", "\n\t", "  "),
)


def everywhere(text: str) -> set[tuple[str, int, int]]:
    """Slow: each rule at each of its heads in the whole of each view, found without the search for literals."""
    view = View(text.encode())
    bare = layers(view)
    whole = joined(bare[-1])
    views, wholes = [*bare], [whole]
    for packed in unpacked(whole, whole.starts) if whole else unpacked(bare[-1]):
        inner = layers(packed)
        views += inner
        wholes.append(joined(inner[-1]))
    found = {
        (name, *seen.source(start, end)) for seen in views for name, start, end in secrets(seen, all_heads(seen.data))
    }
    begun = {(name, start) for name, start, _ in found}
    for one in filter(None, wholes):
        for name, start, end in broken_secrets(one, all_heads(one.data), begun):
            found.add((name, *one.source(start, end)))
    return found


def all_heads(data: bytes) -> Heads:
    found: dict[int, set[int]] = defaultdict(set)
    for number, rule in enumerate(rules()):
        for head in rule.heads:
            found[number] |= set(_places(head, data))
    return {number: sorted(places) for number, places in found.items() if places}


def _places(head: Literal, data: bytes) -> Iterator[int]:
    if head.is_pattern:
        for match in re.finditer(rb"(?=(%b))" % head.word, data):
            yield match.end(1)
    else:
        flags = re.IGNORECASE if head.any_case else 0
        for match in re.finditer(rb"(?=%b)" % re.escape(head.word), data, flags):
            yield match.start()


def covered(found: set[tuple[str, int, int]]) -> set[int]:
    return {at for _, start, end in found for at in range(start, end)}


def seen(text: str) -> set[tuple[str, int, int]]:
    found = finished(REDACTION._found(text.encode()))
    return {(name, *span) for name, spans in found.items() for span in spans}


def filler(seed: int, words: int) -> str:
    dice = random.Random(seed)  # noqa: S311 - the same words each time
    return " ".join(dice.choice(WORDS) for _ in range(words))


VENDOR_SAMPLES = [
    Sample(row.name, row.beginning, f"the key is {key} now", key) for row in VENDORS for key in [example(row, row.name)]
]
PIECES = st.one_of(
    st.builds(filler, st.integers(0, 999), st.integers(1, 700)),
    st.builds(
        lambda sample, dress: dress(sample),
        st.sampled_from([*SAMPLES, *VENDOR_SAMPLES]),
        st.sampled_from([*DRESSES.values()]),
    ),
)
OUTER = st.sampled_from([str, in_json, numbered, in_url, in_base64, in_wrapped_base64, in_json_twice])


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.lists(PIECES, min_size=1, max_size=5), OUTER)
def test_around_literals_the_same_is_found_as_everywhere(pieces: list[str], outer: Callable[[str], str]) -> None:
    text = outer("\n".join(pieces))
    assert covered(seen(text)) == covered(everywhere(text))


ESCAPES = [
    *(
        b"\\",
        b"\\\\",
        b"\\n",
        b'\\"',
        b"\\\\n",
        b"%",
        b"%41",
        b"%5c",
        b"%6e",
        b"\\u005c",
        b"\\u0041",
        b"\\x6e",
        b"\\x00",
    ),
    *(
        b"\\033",
        b"\\134",
        b"\\e",
        b"\x1b[1m",
        b"\\033[0m",
        b"[0m",
        b"n",
        b"u",
        b"x",
        b"0",
        b"41",
        b"/",
        b"`",
        b"\n",
        b"\x00",
    ),
]


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.lists(st.sampled_from(ESCAPES), max_size=9))
def test_escapes_that_are_undone_all_at_once_are_those_that_stand_there(pieces: list[bytes]) -> None:
    for view in layers(View(b"".join(pieces)))[1:]:
        assert view.below is not None
        if not view.data:
            continue
        view.source(0, 1)
        one_by_one = [
            view.below.data[start:end] if is_copy else _meaning(view.below.data[start:end])
            for start, end, is_copy in view.pieces
        ]
        assert view.data == b"".join(one_by_one)

"""Each row of the table of vendors finds the key that it is an example of, as it stands in prose, and no more."""

from __future__ import annotations

import json
import random
import re
import string
from functools import cache
from typing import Any

import pytest
import re2

from app.privacy.redact import REDACTED, Redaction
from app.privacy.vendors import VENDORS, Vendor

ALPHABETS = {
    "alnum": string.ascii_letters + string.digits,
    "letters": string.ascii_letters,
    "lower": string.ascii_lowercase + string.digits,
    "upper": string.ascii_uppercase + string.digits,
    "digits": string.digits,
    "hex": "0123456789abcdef",
    "url": string.ascii_letters + string.digits + "-_",
    "base64": string.ascii_letters + string.digits + "+/",
    "base32": string.ascii_lowercase + "234567",
    "base32upper": string.ascii_uppercase + "234567",
    "bech32": "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L",
    "bech32lower": "qpzry9x8gf2tvdw0s3jn54khce6mua7l",
}
_FIELD = re.compile(r"\{(\w+)(?::(\d+))?\}")
_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1


def made(template: str, seed: str) -> str:
    """The text of a template: `ghp_{alnum:36}` with random letters, the same ones for the same seed."""
    dice = random.Random(seed)  # noqa: S311 - the same letters each time, nothing to protect

    def letters(field: re.Match[str]) -> str:
        if field[1] == "uuid":
            return "-".join(noise("hex", length) for length in (8, 4, 4, 4, 12))
        return noise(field[1], int(field[2]))

    def noise(alphabet: str, length: int) -> str:
        return "".join(dice.choice(ALPHABETS[alphabet]) for _ in range(length))

    return _FIELD.sub(letters, template)


def example(row: Vendor, seed: str) -> str:
    """Without a template: the beginning, and as few letters of the body as there may be."""
    if row.example:
        return made(row.example, seed)
    letters = "".join(chr(code) for code in range(0x21, 0x7F) if re.fullmatch(row.body, chr(code)))
    dice = random.Random(seed)  # noqa: S311 - see above
    return row.beginning.replace("\\", "") + "".join(dice.choice(letters) for _ in range(row.least))


@cache
def pattern(row: Vendor) -> Any:
    return re2.compile(f"({row.beginning}){row.body}{{{row.least},}}".encode(), _OPTIONS)


def found(row: Vendor, text: bytes) -> list[tuple[int, int]]:
    """Where the row finds a secret: what it says in words, in as few words of code as will do."""
    spans = []
    for hit in pattern(row).finditer(text):
        if row.is_bounded and text[hit.start() - 1 : hit.start()].isalnum():
            continue
        if not row.most or hit.end() - hit.end(1) <= row.most:
            spans.append((hit.end(1) if row.keeps_beginning else hit.start(), hit.end()))
    return spans


def by_row(row: Vendor) -> str:
    return f"{row.name} {row.beginning[:24]}"


@pytest.mark.parametrize("row", VENDORS, ids=by_row)
def test_an_example_is_found_whole(row: Vendor) -> None:
    for seed in range(20):
        key = example(row, f"{row.name} {row.beginning} {seed}")
        text = f"the key is {key} for now".encode()
        start, end = found(row, text)[0]
        assert end >= len("the key is ") + len(key), key
        assert start == len("the key is ") or row.keeps_beginning or "://" in key or row.name == "copilot", key


@pytest.mark.parametrize("row", [row for row in VENDORS if row.counter_example], ids=by_row)
def test_what_looks_like_one_and_is_none_stays(row: Vendor) -> None:
    text = f"see {made(row.counter_example, row.name)} there".encode()
    assert not any(found(other, text) for other in VENDORS)


@pytest.mark.slow
def test_no_row_is_there_in_vain() -> None:
    """Without it, a key would stay, or would be counted as another vendor's."""
    for number, row in enumerate(VENDORS):
        texts = [f"the key is {example(row, f'{row.beginning} {seed}')} for now".encode() for seed in range(12)]
        for other in (*VENDORS[:number], *(one for one in VENDORS[number + 1 :] if one.name == row.name)):
            assert not all(_covers(other, row, text) for text in texts), f"{by_row(row)} by {by_row(other)}"


def _covers(other: Vendor, row: Vendor, text: bytes) -> bool:
    start, end = found(row, text)[0]
    return any(begin <= start and end <= upto for begin, upto in found(other, text))


def test_every_row_says_where_its_facts_come_from() -> None:
    assert [by_row(row) for row in VENDORS if not row.source] == []


def test_what_a_row_is_found_by_is_part_of_its_beginning() -> None:
    for row in VENDORS:
        if row.mark:
            text = example(row, row.name).encode()
            place = re2.search(row.mark.encode(), text, options=_OPTIONS).start()
            assert place - (found(row, text)[0][0] if not row.keeps_beginning else 0) <= row.before, by_row(row)


def test_an_example_is_found_just_behind_an_escape() -> None:
    redaction = Redaction.compile([])
    for row in VENDORS:
        key = example(row, "escape")
        assert REDACTED in redaction.text(json.dumps(f"done\n{key}")), row.name


@pytest.mark.parametrize("row", [row for row in VENDORS if re.fullmatch(row.body, ".") and row.least >= 16], ids=by_row)
def test_dots_behind_a_key_that_was_cut_off_are_none_of_its_letters(row: Vendor) -> None:
    """Where a key may hold a dot, the three dots of a cut stand in it, and the key would seem not to end there."""
    key = example(row, "cut")
    begin = found(row, key.encode())[0][0] if row.keeps_beginning else 0
    beginning = pattern(row).search(key.encode()).end(1)
    cut = key[: beginning + min(row.least - 4, 24)].rstrip(".")
    assert cut[begin:] not in Redaction.compile([]).text(f"client secret {cut}... and more")

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from app.privacy.known_secrets import search_for
from app.privacy.literals import Literal, Search
from app.privacy.redact import REDACTED, Redaction
from tests.support.dress import added, in_base64, in_json, in_json_twice, in_lines, in_url, leaks, numbered
from tests.support.fake_secrets import noise

# No rule knows this: letters, a space, marks that JSON and URLs escape, and letters beyond ASCII.
ODD = 'zw"olf \\ bo/xk+ämp & fer?'
VALUE = noise("known", "abcdefghijkmnopqrstuvwxyz", 24)
REDACTION = Redaction.compile([], secrets=False, known_values=[VALUE, ODD])
OTHERS = [noise(f"other {number}", "abcdefghijkmnopqrstuvwxyz0123456789", 24) for number in range(600)]
OF_MANY = Redaction.compile([], secrets=False, known_values=[VALUE, ODD, *OTHERS])
"""So many are looked for in another way."""


@pytest.mark.parametrize("value", [VALUE, ODD], ids=["letters", "odd"])
@pytest.mark.parametrize(
    "form",
    [
        str,
        in_lines,
        numbered,
        added,
        in_json,
        in_json_twice,
        lambda value: json.dumps(value, ensure_ascii=False),
        in_url,
        lambda value: in_json(in_url(value)),
        quote,
        quote_plus,
        lambda value: value.encode().hex(),
        lambda value: value.encode().hex().upper(),
        in_base64,
        lambda value: in_base64(value, 1),
        lambda value: in_base64(value, 2),
        lambda value: in_base64(in_json(value)),
        lambda value: b64encode(b"\xff\xfe" + value.encode() + b"\x80").decode(),
        lambda value: b64encode(b"\xff" + value.encode() + b"\x80").decode(),
        lambda value: urlsafe_b64encode(b"\xff\xfe\xfd" + value.encode() + b"\x80\x81").decode(),
        lambda value: f"\x1b[32m{value[:5]}\x1b[1;31m{value[5:]}\x1b[0m",
        lambda value: f"{value[:13]}\n{value[13:]}",
        lambda value: numbered(f"{value[:13]}\n{value[13:]}"),
    ],
    ids=[
        "plain",
        "lines",
        "numbered",
        "added",
        "json",
        "json-twice",
        "json-unicode",
        "url",
        "url-in-json",
        "quoted",
        "form",
        "hex",
        "hex-upper",
        "base64",
        "base64-shift-1",
        "base64-shift-2",
        "json-in-base64",
        "base64-binary",
        "base64-binary-shift-1",
        "base64-url-safe",
        "coloured",
        "broken",
        "broken-numbered",
    ],
)
@pytest.mark.parametrize("redaction", [REDACTION, OF_MANY], ids=["", "of-many"])
def test_a_known_value_is_masked_in_every_form(value: str, form: Callable[[str], str], redaction: Redaction) -> None:
    hits: Counter[str] = Counter()
    text = redaction.text(form(value), hits)
    assert not leaks(text, value)
    assert REDACTED in text
    assert hits == {"known": 1}


def test_base64_of_a_short_known_value_is_masked_where_nothing_is_long_enough_to_be_read() -> None:
    value = "~~~>>>??"
    redaction = Redaction.compile([], secrets=False, known_values=[value])
    for before, kept in (("", ""), ("a", "Y"), ("ab", "YW")):
        for encode in (b64encode, urlsafe_b64encode):
            packed = encode(f"{before}{value}".encode()).decode().rstrip("=")
            assert redaction.text(f"x {packed} y") == f"x {kept}{REDACTED} y"


def test_a_line_that_begins_with_a_sign_of_its_own_keeps_it() -> None:
    value = "abcdefghij" + "+klmnopqrst"
    redaction = Redaction.compile([], secrets=False, known_values=[value])
    assert redaction.text("x\nabcdefghij\n+klmnopqrst\ny") == f"x\n{REDACTED}\ny"
    assert redaction.text("+x\n+abcdefghij\n++klmnopqrst\n+y") == f"+x\n+{REDACTED}\n+y"


def test_the_text_around_a_known_value_stays() -> None:
    assert REDACTION.text(f"a {VALUE} b") == f"a {REDACTED} b"
    assert REDACTION.text(VALUE[:-1]) == VALUE[:-1]


@pytest.mark.parametrize("others", [0, 6_000])
def test_words_that_begin_alike_or_overlap_are_all_found(others: int) -> None:
    words = [b"abc", b"abcdefgh", b"abcdefghij", b"bcd", *(b"%05d" % number for number in range(others))]
    search = Search([Literal(b"CD", any_case=True)], words)
    assert search.find(b"xabcdefghijx") == [(4, 1), (5, 0), (5, 4), (9, 2), (11, 3)]


def test_the_longer_of_two_known_values_goes_whole() -> None:
    redaction = Redaction.compile([], known_values=[VALUE[:10], VALUE])
    assert redaction.text(f"a {VALUE} b {VALUE[:10]} c") == f"a {REDACTED} b {REDACTED} c"


def test_known_values_go_even_when_the_rules_rest() -> None:
    assert Redaction.compile([], secrets=False, known_values=[VALUE]).text(VALUE) == REDACTED


def test_a_value_of_many_lines_goes_with_numbers_between_them() -> None:
    lines = [noise(f"line {number}", "abcdefghijkm", 40) for number in range(3)]
    redaction = Redaction.compile([], secrets=False, known_values=["\n".join(lines)])
    assert not any(leaks(redaction.text(numbered("\n".join(lines))), line) for line in lines)


def test_a_very_long_value_goes_to_its_end() -> None:
    value = noise("long", "abcdefghijkm", 3000)
    text = Redaction.compile([], secrets=False, known_values=[value]).text(f"a {value} b")
    assert text == f"a {REDACTED} b"


def test_a_redaction_does_not_show_its_known_values() -> None:
    assert VALUE not in repr(REDACTION)


def test_two_known_values_that_overlap_both_go_whole() -> None:
    value = noise("overlap", "abcdefghijkm", 40)
    redaction = Redaction.compile([], secrets=False, known_values=[value[:25], value[15:]])
    assert redaction.text(f"a {value} b") == f"a {REDACTED} b"


def test_a_value_just_longer_than_a_piece_leaves_no_end() -> None:
    value = noise("piece", "abcdefghijkm", 515)
    assert Redaction.compile([], secrets=False, known_values=[value]).text(f"a {value} b") == f"a {REDACTED} b"


def test_the_frame_of_a_key_in_pem_stays() -> None:
    frame = f"-----BEGIN {'PRIVATE'} KEY-----"
    redaction = Redaction.compile([], secrets=False, known_values=[f"{frame}\n{noise('pem', 'abcdefghijkm', 64)}"])
    assert redaction.text(frame) == frame


def test_a_run_of_one_letter_is_one_range() -> None:
    search = search_for(["x" * 8])
    assert search is not None
    assert len(list(search.spans(b"x" * 8_000))) == 1_000


@pytest.mark.parametrize(
    "value",
    [noise("broken", "abcdefghijkmnopqrstuvwxyz", 16), noise("short", "abcdefg1234", 8), "62fA/rWxyP-jrNg7N4/Gv"],
)
@pytest.mark.parametrize("wear", [in_lines, numbered, in_json])
@pytest.mark.parametrize("others", [[], OTHERS], ids=["", "of-many"])
def test_a_known_value_broken_anywhere_is_found(value: str, wear: Callable[[str], str], others: list[str]) -> None:
    redaction = Redaction.compile([], secrets=False, known_values=[value, *others])
    for at in range(1, len(value)):
        for seam in ("\n", "\x1b[1m"):
            assert REDACTED in redaction.text(wear(f"{value[:at]}{seam}{value[at:]}")), (at, seam)


@pytest.mark.parametrize("value", ["пароль от склада", "密码是一二三四五", 'a"b!c\'d"e?f'])
def test_a_known_value_of_few_plain_letters_is_found_in_json(value: str) -> None:
    redaction = Redaction.compile([], secrets=False, known_values=[value])
    assert redaction.text(json.dumps({"a": f"so {value} is"})) == '{"a": "so [REDACTED] is"}'


def test_a_long_known_value_with_every_letter_escaped_is_found_whole() -> None:
    value = noise("long", "abcdefghijkmnopqrstuvwxyz-.", 1_000)
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in value)
    redaction = Redaction.compile([], secrets=False, known_values=[value])
    assert redaction.text(f"so {escaped} is") == "so [REDACTED] is"

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from app.cli.options import complain, print_lines
from app.runtime.terminal import visible

BLANK = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\ufe00\ufe0d\uffa0"
    "\U00013441\U00013442\U00016fe4\U0001d159\U000e0100\U000e01ef"
)
FORMS = range(0xFE00, 0xFE0E), range(0xE0100, 0xE01F0)
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@pytest.mark.slow
def test_no_character_is_left_that_steers_hides_or_turns_what_stands_around_it() -> None:
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        is_blank = character in BLANK or any(point in forms for forms in FORMS)
        is_hidden = (unicodedata.category(character) in HIDDEN and character != "\t") or is_blank
        assert (visible(character) != character) is is_hidden, hex(point)


@pytest.mark.parametrize(
    "point",
    [
        0x1B,
        0x9B,
        0xAD,
        0x61C,
        0x200B,
        0x200E,
        0x2028,
        0x2029,
        0x202E,
        0x2066,
        0xFEFF,
        0xE0041,
        0xE007F,
        0xD800,
        0xF8FF,
        *map(ord, BLANK),
    ],
    ids=hex,
)
def test_what_is_hidden_is_written_as_json_escapes_it(point: int) -> None:
    shown = visible(f"a{chr(point)}b")
    assert shown.isascii()
    assert json.loads(f'"{shown}"') == f"a{chr(point)}b"


@pytest.mark.parametrize("text", ["a\ttab", "Grüße 日本 한글 \U0001f30d é ⠁⠿ ❤️", "no\xa0break\u3000wide", "\\u200b"])
def test_what_is_written_to_be_read_stays(text: str) -> None:
    assert visible(text) == text


def test_every_line_that_a_command_prints_goes_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(["one \u2066two\U000e0041"])
    print_lines(["three \u061c"], failed=True)
    complain("four \ufeff\nfive")
    assert capsys.readouterr() == (
        "one \\u2066two\\udb40\\udc41\n",
        "three \\u061c\nopencode-helicone: four \\ufeff five\n",
    )

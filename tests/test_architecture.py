"""The picture of the packages is what the contract and the imports say."""

from __future__ import annotations

from tests.architecture import PAGE, arrows, drawn, page


def test_the_picture_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "python -m tests.architecture writes it anew"


def test_an_arrow_that_follows_from_others_is_left_out() -> None:
    found = arrows({("app.a.x", "app.b.y"), ("app.a.x", "app.a.z"), ("app.b.y", "app.c"), ("app.a.x", "app.c")})
    assert drawn([["a"], ["b"], ["c"]], found)[-2:] == ["  a --> b", "  b --> c"]

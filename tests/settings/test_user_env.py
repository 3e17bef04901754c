"""Writing a user's own `.env`: what it held stays, and what is written is read back as it was meant."""

from __future__ import annotations

import stat
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from app.settings import user_env
from app.settings.user_env import rewritten


def test_other_lines_stay_as_they_are() -> None:
    before = "# mine\n\nexport OTHER='a b'\nHELICONE_API_KEY=old # why\nLAST=1"
    after = rewritten(before, {"HELICONE_API_KEY": "new", "HELICONE_ENDPOINT": "https://a", "LAST": None, "GONE": None})
    assert after == "# mine\n\nexport OTHER='a b'\nHELICONE_API_KEY=new\nHELICONE_ENDPOINT=https://a\n"


def test_one_that_stands_there_twice_is_written_once() -> None:
    assert rewritten("A=1\nA=2\n", {"A": "3"}) == "A=3\n"


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Zl", "Zp"])))
def test_each_value_is_read_as_it_was_meant(value: str) -> None:
    text = rewritten("B=2", {"A": value})
    assert dotenv_values(stream=StringIO(text), interpolate=False) == {"A": value, "B": "2"}


def test_the_file_is_private_and_a_link_stays_one(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "env"
    real.parent.mkdir()
    real.write_text("B=2\n")
    path = tmp_path / "own" / ".env"
    user_env.write(path, {"A": "1"})
    assert path.read_text() == "A=1\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.unlink()
    path.symlink_to(real)
    user_env.write(path, {"A": "1"})
    assert path.is_symlink()
    assert real.read_text() == "B=2\nA=1\n"
    assert list(path.parent.iterdir()) == [path]


def test_one_that_is_no_text_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "own" / ".env"
    path.parent.mkdir()
    path.write_bytes(b"\xff")
    with pytest.raises(OSError, match="not UTF-8"):
        user_env.write(path, {"A": "1"})
    assert path.read_bytes() == b"\xff"

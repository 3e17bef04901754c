"""Writes variables into the user's own `.env`, and leaves every other line of it as it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from app.runtime.filesystem import private_directory, replace_file


def rewritten(text: str, values: Mapping[str, str | None]) -> str:
    r"""The text of an `.env` file with these variables; None takes one out.

    >>> rewritten("A=1\\nB=2", {"A": None, "B": "two words"})
    "B='two words'\\n"
    """
    kept, left = "", dict(values)
    for binding in parse_stream(StringIO(text)):
        if binding.key is not None and binding.key in values:
            value = left.pop(binding.key, None)
            kept += "" if value is None else f"{binding.key}={_quoted(value)}\n"
        else:
            kept += binding.original.string
            kept += "" if kept.endswith("\n") or not kept else "\n"
    return kept + "".join(f"{name}={_quoted(value)}\n" for name, value in left.items() if value is not None)


def _quoted(value: str) -> str:
    if re.fullmatch(r"[\w@%+:,./-]*", value, re.ASCII):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def write(path: Path, values: Mapping[str, str | None]) -> None:
    """All or nothing, mode 0600. Raises OSError, also where the file is no text."""
    private_directory(path.parent)
    real = Path(os.path.realpath(path))  # people link it to where they keep such files
    try:
        before = real.read_text("utf-8")
    except FileNotFoundError:
        before = ""
    except UnicodeDecodeError:
        raise OSError(0, "it is not UTF-8: move it away", str(path)) from None
    replace_file(real, rewritten(before, values).encode())

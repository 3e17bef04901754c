"""Finds secrets in JSON that are known by what stands beside them.

    {"name": "DB_PASSWORD", "value": "…"}      the name is in one field, the value in another
    ["mysql", "--password", "…"]               the name is the element before

The strings of an object or a list are read as the one line that they would be in a text (app.privacy.named_values),
so that JSON and text have the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.privacy.named_values import named_values
from app.privacy.secret_names import is_named
from app.transcript.model import Json

_STRING_MAX, _LINE_BYTES_MAX = 1_000, 8_000


def secrets_beside(value: dict[str, Json] | list[Json], name: str, mask: str) -> dict[str | int, str]:
    """Strings in which a secret was found, by key or index, with the mask in its place.

    `name`: the key that the value itself, or the list that holds it, stands under.
    """
    items: Iterable[tuple[str | int, Json]] = value.items() if isinstance(value, dict) else enumerate(value)
    line = bytearray(b"" if isinstance(value, dict) and name.lower() != "cookies" else b'"%b": [' % _cut(name))
    line += b"{" if isinstance(value, dict) else b""
    places: list[tuple[int, int, str | int, str]] = []
    for key, inner in items:
        if not isinstance(inner, str) or len(line) > _LINE_BYTES_MAX or (isinstance(key, str) and is_named(key)):
            continue
        line += b'"%b": "' % _cut(key) if isinstance(key, str) else b'"'
        places.append((len(line), len(line) + len(_cut(inner)), key, inner))
        line += b'%b", ' % _cut(inner)
    made: dict[str | int, str] = {}
    for start, end in named_values(bytes(line)) if places else ():
        for begin, finish, key, inner in places:
            if begin <= start and end <= finish:
                text = inner.encode("utf-8", "replace")
                rest = b"" if end == finish else text[end - begin :]
                made[key] = f"{text[: start - begin].decode()}{mask}{rest.decode()}"
    return made


def _cut(text: str) -> bytes:
    return text[:_STRING_MAX].encode("utf-8", "replace")

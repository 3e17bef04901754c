r"""Finds passwords that a program takes without a name for them: options, SQL, netrc, `.pgpass`.

    curl -u app:…   curl --proxy-user app:…    what comes after the user
    mysql -u root -p…   sshpass -p …           the option's value
    CREATE USER x IDENTIFIED BY '…'            SQL
    machine example.com login app password …   netrc
    db.example.com:5432:app:app:…              .pgpass

Each begins with a word or sign that few texts hold (`BEGINNINGS`); what follows decides, a line at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.privacy.secret_values import is_placeholder, is_plain_word

_APART = rb"(?:\\{0,8}[\"'],?[ \t\r\n]*\\{0,8}[\"']|[ \t]*=[ \t]*[\"']?|[ \t]+[\"']?)"
"""Between an option and its value: space, `=`, or the quotes of two elements of a list."""
_VALUE = rb"(?P<value>[^\s\"'`\\|;&<>,-][^\s\"'`\\|;&<>]*)"
_USER = rb"[^\s\"'`:|;&<>-][^\s\"'`:|;&<>]*:"


def _option(names: bytes, gap: bytes, before: bytes = b"") -> re.Pattern[bytes]:
    return re.compile(rb"(?<=[\s\"'])(?:" + names + rb")(?:" + gap + rb")" + before + _VALUE)


_GLUED = rb"[\"']?"
_EITHER = _APART + rb"|" + _GLUED
_OPTIONS = {
    b"curl": _option(rb"-u|-U|--user|--proxy-user", _EITHER, _USER),
    b"mysq": _option(rb"-p", _GLUED),
    b"mari": _option(rb"-p", _GLUED),
    b"sshp": _option(rb"-p", _EITHER),
    b"mong": _option(rb"-p", _EITHER),
    b"dock": _option(rb"-p", _APART),
    b"podm": _option(rb"-p", _APART),
    b"redi": _option(rb"-a", _APART),
    b"mach": (_NETRC := re.compile(rb"(?<=\s)(?:password|passwd)\s+" + _VALUE)),
    b"defa": _NETRC,
}
"""By the first letters of the program."""
_SQL = b"iden"
_BEGINNING_LENGTH = 4
_IDENTIFIED = re.compile(
    rb"identified[ \t]+(?:with[ \t]+\S{1,100}[ \t]+)?(?:by|as)[ \t]+(?:password[ \t]+)?(?:"
    rb"(?P<quote>\\{0,8}['\"])(?P<quoted>[^'\"\r\n\\]+)|(?P<bare>[^\s\"'`;\\<.]+)(?=[ \t]*(?:;|$)))",
    re.IGNORECASE | re.MULTILINE,
)
_USER_WORD = re.compile(rb"\b(?:user|role)\b", re.IGNORECASE)
_PGPASS = re.compile(
    rb":(?:[0-9]{4,5}|\*):[^\s:{}=%]{1,100}:(?![0-9a-f]{1,4}:[0-9a-f]{1,4}\b)[^\s:{}=%]{1,100}:(?P<value>[^\s:/\"'*](?:[^\s:\\]|\\[:\\])*)(?=\s|$)"
)
_HOST = re.compile(rb"(?:^|[\s:|\"'])[A-Za-z0-9.*-]+$")
_HOST_MAX, _LINE_MAX = 100, 500
_LINE_END = re.compile(rb"(?<![\\,])\r?\n")
_ENTRY_END = re.compile(rb"\n[ \t]*(?:machine|default)[ \t]|\n[ \t]*\r?\n")

BEGINNINGS = (
    rb"(?:curl|mysql[a-z-]*|mariadb[a-z-]*|sshpass|mongo[a-z]*|redis-cli)[ \t\"']|(?:docker|podman)[ \t]+login[ \t]"
    rb"|machine[ \t]|default[ \t]+login[ \t]|identified[ \t]+(?:by|with)[ \t]|:(?:[0-9]{4,5}|\*):[^\s:]"
)
"""RE2, for one search with the names."""
_BEGINNING = re.compile(BEGINNINGS, re.IGNORECASE)


def begins_command(data: bytes, start: int) -> bool:
    """Whether such a word stands there; not whether such a sign does."""
    word = data[start : start + _BEGINNING_LENGTH].lower()
    return (word in _OPTIONS or word == _SQL) and _BEGINNING.match(data, start) is not None


def passwords_after(data: bytes, start: int, looked: dict[bytes, int]) -> Iterator[tuple[int, int]]:
    """The ranges of the passwords that such a beginning announces.

    `looked`: for each program, up to where it has been looked at all that may follow; kept from one call to the next,
    so that a line that names a program many times is read once.
    """
    beginning = data[start : start + _BEGINNING_LENGTH].lower()
    if beginning[:1] == b":":
        found = _PGPASS.match(data, start, start + _LINE_MAX)
        if found and _HOST.search(data[max(0, start - _HOST_MAX) : start]):
            yield found.span("value")
    elif beginning == _SQL:
        # Prose says it as well: "can be identified by 'key'".
        is_sql = data.startswith(b"IDENT", start) or _USER_WORD.search(data, max(0, start - _HOST_MAX), start)
        if is_sql and (found := _IDENTIFIED.match(data, start, start + _LINE_MAX)) and (span := _quoted(found)):
            yield span
    elif start >= looked.get(beginning, 0):
        end = _ENTRY_END if _OPTIONS[beginning] is _NETRC else _LINE_END
        cut = end.search(data, start, start + 2 * _LINE_MAX)
        upto = cut.start() if cut else start + 2 * _LINE_MAX
        looked[beginning] = upto if cut else start + _LINE_MAX
        for found in _OPTIONS[beginning].finditer(data, start, upto):
            value = found["value"]
            if not is_placeholder(value) and not is_plain_word(value):
                yield found.span("value")


def _quoted(found: re.Match[bytes]) -> tuple[int, int] | None:
    group = "quoted" if found["quoted"] else "bare"
    value = found[group]
    if group == "bare" and not found[0].startswith(b"IDENT"):
        return None
    return None if is_placeholder(value) or is_plain_word(value) else found.span(group)

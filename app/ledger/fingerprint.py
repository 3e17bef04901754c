"""Fingerprint of an error: equal for two that differ only in numbers, ids and quotations. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

CHARACTERS = 8

# The status of Helicone's answer is what tells errors apart, unlike all other numbers.
_STATUS = re.compile(r"[1-5][0-9]{2}: ")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_UUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
_ID = re.compile(r"\b(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{8,}\b")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True, slots=True)
class ErrorKind:
    fingerprint: str
    """CHARACTERS of hex: equal on every machine."""
    text: str
    """The error without what differs from job to job."""


def kind_of_error(error: str) -> ErrorKind:
    """The error's kind, from its text as a job keeps it.

    >>> kind_of_error("500: error row 17 of a1b2c3d4e5 is 'x' (after 5 retries)").text
    "500: error row # of # is '…' (after # retries)"
    >>> kind_of_error("500: error a").fingerprint == kind_of_error("400: error a").fingerprint
    False
    """
    status = _STATUS.match(error)
    head, rest = (status[0], error[status.end() :]) if status else ("", error)
    rest = _QUOTED.sub(lambda quoted: f"{quoted[0][0]}…{quoted[0][0]}", rest)
    for varying in (_UUID, _ID, _NUMBER):
        rest = varying.sub("#", rest)
    text = head + " ".join(rest.split())
    return ErrorKind(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:CHARACTERS], text)

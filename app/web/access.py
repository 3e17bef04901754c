"""Access to the web view: an address that opens it once, in exchange for a cookie.

Everybody on this machine can reach the port. The token stands in an address, which shells, browsers and people keep; so
it is worth nothing after its first use, and the cookie is made by other dice.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable
from typing import Literal


def cookie(port: int | None) -> str:
    """The name under which a browser keeps it: by itself it gives the cookies of one port to all others."""
    return f"opencode-helicone-web-{port or 80}"


class Access:
    """Who may see the pages of one server."""

    def __init__(self, dice: Callable[[], str]) -> None:
        self.token = dice()
        self.cookie = dice()
        self._lock = threading.Lock()
        self._is_used = False

    def swap(self, token: str) -> Literal["opened", "used", "wrong"]:
        """Give the cookie for the token. `used`: somebody had it before."""
        if not hmac.compare_digest(self.token.encode(), token.encode("utf-8", "replace")):
            return "wrong"
        with self._lock:
            was_used, self._is_used = self._is_used, True
        return "used" if was_used else "opened"

    def is_allowed(self, cookie: str) -> bool:
        return hmac.compare_digest(self.cookie.encode(), cookie.encode("utf-8", "replace"))

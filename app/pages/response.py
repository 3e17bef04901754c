"""Responses of pages: nothing from elsewhere is loaded, nothing is kept, no other page may frame or read them."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.pages.policy import POLICY

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_STATIC = Path(__file__).parent / "static"
_TYPES = {"page.css": "text/css", "page.js": "text/javascript", "page.svg": "image/svg+xml"}


def html(text: str, status: int = 200) -> Response:
    # What OpenCode stores may hold half a character, which no encoding has.
    return Response(text.encode("utf-8", "replace"), status, HEADERS, "text/html")


def static_routes() -> list[Route]:
    """Style and script: the same for everybody, so whoever asks gets them."""
    return [Route(f"/{name}", _file, methods=["GET"]) for name in _TYPES]


async def _file(request: Request) -> Response:
    name = request.url.path.rpartition("/")[2]
    return Response((_STATIC / name).read_bytes(), headers=HEADERS, media_type=_TYPES[name])

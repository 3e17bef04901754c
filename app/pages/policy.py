"""Policy of every page: what a browser may load for it, and do with it. Pure."""

from __future__ import annotations

NOTHING_ELSE = "default-src 'none'"
POLICY = (
    f"{NOTHING_ELSE}; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy: style and script are files of ours, and nothing stands inline."""

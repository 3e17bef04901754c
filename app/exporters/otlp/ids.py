"""Ids of traces and spans. They follow from OpenCode's ids alone, so that what is captured again is the same spans.

No policy, version or destination goes into them. The trace goes into its spans' ids: Phoenix drops a span whose id it
has seen in any other trace.
"""

from __future__ import annotations

import hashlib

_NAMESPACE = "opencode-helicone/otlp/1"
"""Another one would double every trace that a destination holds."""
TRACE_BYTES = 16
SPAN_BYTES = 8


def trace_id(root_session: str, turn: str) -> bytes:
    """Of a turn, with all that happened in its subagents."""
    return _digest("trace", root_session, turn)[:TRACE_BYTES]


def span_id(trace: bytes, *steps: str) -> bytes:
    """`steps`: session, message and part, as far as there are; then what kind of span it is."""
    return _digest("span", trace.hex(), *steps)[:SPAN_BYTES]


def piece_id(trace: bytes, number: int) -> bytes:
    """Of one body of a turn that takes several; the last one has the trace's id."""
    return _digest("piece", trace.hex(), str(number))[:TRACE_BYTES]


def _digest(*steps: str) -> bytes:
    return hashlib.sha256("\0".join((_NAMESPACE, *steps)).encode("utf-8", "surrogatepass")).digest()

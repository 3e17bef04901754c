"""Strictest: joins the layers' export modes and patterns, so that the one that withholds most counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from app.privacy.policy import Mode
from app.settings.model import Given, Layer, Origin

LOOSEST_FIRST: Mapping[str, tuple[object, ...]] = {
    "enable": (True, False),
    "export_mode": get_args(Mode),
    "redact_secrets": (False, True),
}
"""The values of what may leave, beside the patterns."""


def strictest(layers: Sequence[Layer]) -> Layer:
    """What the layers, highest first, say together of what may leave; valid values only. What none speaks of is absent.

    The origin is that of the layer that decided, the highest of those that say the same; of patterns that of each
    layer that brought one.
    """
    said: Layer = {}
    for name, order in LOOSEST_FIRST.items():
        givens = [layer[name] for layer in layers if name in layer]
        if givens:
            said[name] = max(givens, key=lambda given: order.index(given.value))
    lists = [layer["redact_patterns"] for layer in layers if "redact_patterns" in layer]
    if lists:
        said["redact_patterns"] = _joined(lists)
    return said


def _joined(lists: Sequence[Given]) -> Given:
    patterns = dict.fromkeys(pattern for given in lists for pattern in _patterns(given))
    origins = dict.fromkeys(given.origin for given in lists if _patterns(given)) or {lists[0].origin: None}
    first, *others = origins
    origin = Origin(first.source, "; ".join(one.text for one in (first, *others)))
    return Given(tuple(patterns), origin)


def _patterns(given: Given) -> tuple[str, ...]:
    assert isinstance(given.value, list | tuple)  # noqa: S101 - valid values only
    return tuple(given.value)

"""Blank versions of turns: they hold nothing but what Helicone knows each record by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from app.capture.export import Export
from app.privacy.policy import Policy
from app.recall.rewrite import Delivered, Problem, Refusal, Rewrite, blank_body, rewrite

_NO_TEXT = Policy("metadata_only", (), redact_secrets=True, prefix="")


def blanked(of: Delivered, as_sent: Mapping[str, Export]) -> Iterator[Rewrite | Problem]:
    """Each turn without its content. `as_sent`: those of the unnamed turns that OpenCode still has."""
    without_ids = unnamed(of)
    for turn in of.turns:
        if turn in without_ids and turn not in as_sent:
            yield Problem(Refusal.UNNAMED, of.session, turn)
            continue
        records = as_sent[turn].encode() if turn in without_ids else ()
        yield from rewrite(
            of,
            turn,
            (blank_body(record, of) for record in records),
            key=_key(of.session, turn),
            policy=_NO_TEXT,
            is_sealed=True,
        )


def unnamed(of: Delivered) -> frozenset[str]:
    """The turns of which something was sent whose ids are not kept; what was blanked before has none of its own."""
    return frozenset(
        turn
        for turn, versions in of.turns.items()
        if any(one.was_attempted and not one.identities and one.key != _key(of.session, turn) for one in versions)
    )


def _key(session: str, turn: str) -> str:
    return hashlib.sha256(f"blank\n{session}\n{turn}".encode("utf-8", "surrogatepass")).hexdigest()

"""Policy: which settings decide what may leave, and whether bytes made under one may be posted under another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

Mode = Literal["full", "metadata_only", "off"]
"""From the loosest to the strictest."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Versions of the program and of its rule set are no part of it: an upgrade sends nothing again by itself."""

    mode: Mode
    patterns: tuple[str, ...]
    redact_secrets: bool
    prefix: str

    @lru_cache(maxsize=64)  # noqa: B019 - asked for each turn, and there are few
    def facts(self, user_id: str) -> str:
        """The policy as JSON to be kept with a job, equal for equal policies. `user_id` is '' for none.

        Patterns are short hashes: somebody may have written the very secret down as a pattern.
        """
        return json.dumps(self._facts(user_id, sorted(map(_mark, self.patterns))), sort_keys=True)

    @lru_cache(maxsize=64)  # noqa: B019 - the same
    def digest(self, user_id: str) -> str:
        """SHA-256 (hex) of the policy; one half of a job's key."""
        return hashlib.sha256(
            json.dumps(self._facts(user_id, sorted(self.patterns)), sort_keys=True).encode()
        ).hexdigest()

    def as_made(self, facts: str) -> Policy | None:
        """The policy that has these facts, where it can be told from this one: the hashes of patterns are no patterns.

        '' (from before it was kept) is this one; None, where it had patterns or rules that this one has not, or has
        more of them.
        """
        if not facts:
            return self
        told = json.loads(facts)
        same = replace(self, mode=told["mode"], prefix=told["prefix"])
        return same if same.facts(told["user_id"]) == facts else None

    def _facts(self, user_id: str, patterns: list[str]) -> dict[str, object]:
        return {
            "mode": self.mode,
            # Under metadata_only no text leaves, so the patterns decide nothing.
            "patterns": patterns if self.mode == "full" else [],
            "redact_secrets": self.redact_secrets if self.mode == "full" else True,
            "prefix": self.prefix,
            "user_id": user_id,
        }


def _mark(pattern: str) -> str:
    return hashlib.sha256(pattern.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def retold(now: Policy, made_under: str) -> Policy:
    """The policy of which these facts were kept: with those of its patterns that are in force `now`, as hashes tell."""
    made = _withheld(made_under)
    prefix = json.loads(made_under)["prefix"] if made_under else now.prefix
    patterns = tuple(pattern for pattern in now.patterns if _mark(pattern) in made.patterns)
    return Policy(made.mode, patterns, made.redact_secrets, prefix)


def mode_of(made_under: str) -> Mode:
    """The export mode of a policy, as `Policy.facts` says it."""
    return _withheld(made_under).mode


def strictest(one: Mode, other: Mode) -> Mode:
    return max(one, other, key=get_args(Mode).index)


def is_as_strict(made_under: str, now: str) -> bool:
    """Whether bytes made under one policy withhold all that another one would. Both as `Policy.facts` says them.

    '' (from before it was kept) counts as what the program does by default: full, without patterns. Path prefix and
    user id withhold nothing: a change of them stops nothing.
    """
    made, wanted = _withheld(made_under), _withheld(now)
    if made.mode != wanted.mode:
        return strictest(made.mode, wanted.mode) == made.mode
    return made.mode != "full" or (
        wanted.patterns <= made.patterns and (made.redact_secrets or not wanted.redact_secrets)
    )


@dataclass(frozen=True, slots=True)
class _Withheld:
    mode: Mode
    patterns: frozenset[str]
    redact_secrets: bool


def _withheld(facts: str) -> _Withheld:
    if not facts:
        return _Withheld("full", frozenset(), redact_secrets=True)
    told = json.loads(facts)
    return _Withheld(told["mode"], frozenset(told["patterns"]), told["redact_secrets"])


# What the settings in force say to a job that is about to be posted.


@dataclass(frozen=True, slots=True)
class Post:
    """Its bytes withhold enough."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing of its folder may leave now."""

    reason: str
    """For a person."""


@dataclass(frozen=True, slots=True)
class Recapture:
    """Its bytes were made under a looser policy: they must not leave."""


Permit: TypeAlias = Post | Hold | Recapture

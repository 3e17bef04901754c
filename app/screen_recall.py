"""What a person, or a program, is told of an audit and of a recall."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.audit import Audited
from app.recall import Plan
from app.screen import visible

SHORT_CHARACTERS = 16


def audit_lines(results: Sequence[Audited]) -> Iterator[str]:
    for one in results:
        if one.problem:
            yield visible(f"{_short(one.session)}: cannot be audited: {one.problem}")
        if one.records:
            day = datetime.fromtimestamp((one.created_ms or 0) / 1000, UTC).date().isoformat()
            yield visible(f"{_short(one.session)}  {one.project or ''}  {day}: {len(one.records)} records")
        for record in one.records:
            told = ", ".join(f"{name}: {count}" for name, count in sorted(record.hits.items()))
            yield visible(f"  {record.path} ({record.kind}): {told}")
    totals = audit_totals(results)
    yield ", ".join(f"{number} {name}" for name, number in totals.items() if number) or "nothing was delivered"


def audit_totals(results: Sequence[Audited]) -> dict[str, int]:
    return {
        "sessions audited": sum(1 for one in results if not one.problem),
        "sessions to be redacted differently": sum(1 for one in results if one.records),
        "records to be redacted differently": sum(len(one.records) for one in results),
        "records made differently, with nothing to redact": sum(one.changed for one in results),
        "turns from before digests were kept, compared by rules alone": sum(one.unprinted for one in results),
        "turns no longer in OpenCode": sum(one.gone for one in results),
        "turns overwritten by an earlier recall": sum(one.sealed for one in results),
        "sessions that cannot be audited": sum(1 for one in results if one.problem),
    }


def _short(session: str) -> str:
    return session[:SHORT_CHARACTERS]


@dataclass(slots=True)
class Report:
    """What a recall is about to do, and what became of it."""

    sessions: int = 0
    turns: int = 0
    records: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """Records read back, by what Helicone shows of them."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, plan: Plan) -> None:
        self.sessions += bool(plan.rewrites)
        self.turns += len(plan.rewrites)
        self.records += plan.records
        self.complain(plan.session, plan.problems)

    def complain(self, session: str, problems: Iterable[str]) -> None:
        """Each problem is told once, however often it is met."""
        told = [f"{session}: {problem}" for problem in problems]
        self.problems += [one for one in told if one not in self.problems]

    @property
    def question(self) -> str:
        return f"overwrite {self.records} records of {self.turns} turns in {self.sessions} sessions"

    def lines(self) -> Iterator[str]:
        yield f"{self.sessions} sessions, {self.turns} turns, {self.records} records"
        yield from (f"{number} {name}" for name, number in self.outcomes.items())

    def problem_lines(self) -> Iterator[str]:
        yield from map(visible, self.problems)

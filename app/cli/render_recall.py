"""Renders an audit and a recall for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from app.cli.layout import day
from app.ledger.job import SESSION_RECORD
from app.recall.audit import GONE, Audited
from app.recall.recall import Plan
from app.recall.rewrite import Problem, Refusal
from app.sources.opencode.rows import Head


def audit_lines(results: Sequence[Audited]) -> Iterator[str]:
    for one in results:
        if one.problem:
            yield f"{one.session}: cannot be audited: {one.problem}"
        if one.records:
            yield f"{one.session}  {one.project or ''}  {day(one.created_ms or 0)}: {len(one.records)} records"
        for record in one.records:
            told = ", ".join(f"{name}: {count}" for name, count in sorted(record.hits.items()))
            yield f"  {record.path} ({record.kind}): {told}"
    totals = audit_totals(results)
    yield ", ".join(f"{number} {_TOTALS[name]}" for name, number in totals.items() if number) or "nothing was delivered"


_TOTALS = {
    "audited": "sessions audited",
    "sessions": "sessions to be redacted differently",
    "records": "records to be redacted differently",
    "changed": "records made differently, with nothing to redact",
    "unprinted": "turns or session records from before digests were kept, compared by rules alone",
    "gone": "turns or session records no longer in OpenCode",
    "sealed": "turns or session records overwritten by an earlier recall",
    "problems": "sessions that cannot be audited",
}


def audit_totals(results: Sequence[Audited]) -> dict[str, int]:
    return {
        "audited": sum(1 for one in results if not one.problem),
        "sessions": sum(1 for one in results if one.records),
        "records": sum(len(one.records) for one in results),
        "changed": sum(one.changed for one in results),
        "unprinted": sum(one.unprinted for one in results),
        "gone": sum(one.gone for one in results),
        "sealed": sum(one.sealed for one in results),
        "problems": sum(1 for one in results if one.problem),
    }


_BY_BLANK = "recall it with --blank"
_SENTENCES = {
    Refusal.IS_SUBAGENT: "a subagent: name {}",
    Refusal.NOT_DELIVERED: "not delivered to here",
    Refusal.ELSEWHERE: "also delivered to {}: not reached from here",
    Refusal.NOT_AUDITED: "cannot be audited: {}",
    Refusal.NOT_SEARCHED: "cannot be searched: {}",
    Refusal.UNREADABLE: f"{{}}: {_BY_BLANK}",
    Refusal.NO_TEXT: f"its text is {GONE}: {_BY_BLANK}",
    Refusal.WITHHELD: "nothing is posted: {}",
    Refusal.SEALED: f"overwritten before by --match or --blank: {_BY_BLANK}",
    Refusal.LOOSER: f"it was delivered under a stricter {{}} than today's: or {_BY_BLANK}",
    Refusal.UNEQUAL: (
        "it was redacted by secrets that are not known here (run this where OpenCode runs, with its environment),"
        f" or sent by another version, or changed in OpenCode since: or {_BY_BLANK}"
    ),
    Refusal.UNNAMED: f"sent before its ids were kept, and {GONE}: it cannot be overwritten",
    Refusal.ROW_STAYS: "an older row under the id {}, of another start or model, stays",
    Refusal.IN_FLIGHT: "it was being delivered just then; recall it again",
    Refusal.NOT_THERE: "{}",
}


def problem_line(problem: Problem) -> str:
    return ": ".join(filter(None, (problem.session, problem.place, _SENTENCES[problem.refusal].format(problem.detail))))


@dataclass(slots=True)
class Report:
    """What a recall is about to do, and what became of it."""

    sessions: int = 0
    turns: int = 0
    records: int = 0
    """Those of the turns, and each session's own."""
    chosen: list[str] = field(default_factory=list)
    """Each session, with what of it is overwritten."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """Records read back, by what Helicone shows of them."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, plan: Plan, stored: Head | None) -> None:
        """`stored` is None for a session that OpenCode does not have any more."""
        turns = sum(one.version.turn != SESSION_RECORD for one in plan.rewrites)
        if plan.rewrites:
            self.sessions += 1
            where = "" if stored is None else f"  {stored.directory}  {day(stored.created_ms)}"
            self.chosen.append(f"{plan.session}{where}: {turns} turns, {plan.records} records")
        self.turns += turns
        self.records += plan.records
        self.tell(plan.problems)

    def tell(self, problems: Iterable[Problem]) -> None:
        """Each problem is told once, however often it is met."""
        told = map(problem_line, problems)
        self.problems += [one for one in dict.fromkeys(told) if one not in self.problems]

    @property
    def question(self) -> str:
        return f"overwrite {self.records} records of {self.turns} turns in {self.sessions} sessions"

    def lines(self) -> Iterator[str]:
        yield from self.chosen
        yield f"{self.sessions} sessions, {self.turns} turns, {self.records} records"
        yield from (f"{number} {name}" for name, number in self.outcomes.items())

"""Views: what each page shows. They ask what the commands of the same names ask, and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlencode

from app.errors import UsageError
from app.ledger.counters import days
from app.ledger.dead_letters import Choice
from app.ledger.listing import STATES, Filter
from app.operations import dead_letters
from app.operations.doctor import THOROUGH, examine
from app.operations.finding import Finding
from app.operations.jobs import UnknownJobError, Wanted, list_jobs, open_jobs
from app.operations.sent import read_sent
from app.operations.sessions import list_sessions, open_session
from app.operations.stats import GROUPS, Sum, names, read_stats
from app.operations.status import status_in
from app.operations.verdict import judge
from app.pages.chart import Column, chart
from app.pages.waterfall import bars
from app.runtime.figures import midnight_ms, short, usd
from app.runtime.terminal import counted
from app.sources.opencode.access import StoreError
from app.web.site import Look, Page, Site

DAY_MS = 24 * 3_600_000
DAYS_SHOWN = 30
SENT_DAYS = 7
SPANS_OF_DAYS = (7, 30, 90, 365)
SESSIONS, JOBS, TURNS, SUMS = 25, 25, 10, 100
"""On a page, unless more are asked for."""
SESSIONS_MAX, JOBS_MAX, TURNS_MAX = 200, 1_000, 200
NEWEST = 10_000
"""Jobs among which delivered and superseded ones are looked for: no index has these."""
FAILING = ("dead", "pending")


def overview(look: Look) -> Page:
    titles = look.titles()

    def title_of(session: str) -> str:
        found = titles.of([session])
        return found[session].title if session in found else ""

    status = judge(status_in(look.db, look.settings, look.now_ms, title_of), look.settings)
    counted_days = days(look.db, look.now_ms - DAYS_SHOWN * DAY_MS)
    columns = [
        Column(one.day, (one.delivered, one.failed), f"{one.day}: {one.delivered} delivered, {one.failed} failed")
        for one in counted_days
    ]
    values = {
        "status": status,
        "days": counted_days,
        "chart": chart(columns),
        "oldest_ms": min((one.oldest_pending_ms for one in status.destinations if one.oldest_pending_ms), default=None),
        "groups": [group for one in status.destinations for group in one.dead_letters],
        "failing": [each for one in status.destinations for each in one.errors if each.state == "pending"],
        "shown": [one for one in status.destinations if one.current or one.pause_reason or _has_jobs(one.jobs)],
        "problem": titles.problem,
    }
    return Page("overview.html", "Overview", values)


def _has_jobs(jobs: object) -> bool:
    return any(getattr(jobs, state) for state in STATES)


def sessions(look: Look) -> Page:
    limit = look.number("limit", SESSIONS, SESSIONS_MAX)
    text = look.text("text")
    found = list_sessions(look.db, look.store(), text or "", limit)
    more = None if found.is_all or limit == SESSIONS_MAX else _link("sessions", look, limit=limit * 4)
    return Page("sessions.html", "Sessions", {"found": found, "text": text or "", "more": more})


def session(look: Look) -> Page:
    name = look.text("id") or ""
    limit = look.number("limit", TURNS, TURNS_MAX)
    found = open_session(look.db, look.store(), name, look.settings.session_path_prefix, look.now_ms, limit)
    more = None if found.is_all or limit == TURNS_MAX else _link("session", look, limit=limit * 4)
    turns = [(turn, bars(turn.spans)) for turn in found.turns]
    return Page("session.html", "Session", {"found": found, "turns": turns, "more": more})


def jobs(look: Look) -> Page:
    state = look.asked.get("state", "")
    states: tuple[str, ...] = (state,) if state in STATES else ()
    limit = look.number("limit", JOBS, JOBS_MAX)
    error, title, project = look.text("error"), look.text("title"), look.text("project")
    if error and not states:
        states = FAILING  # no other has one, and so not all jobs are searched
    wanted = Wanted(Filter(states=states, error=error, newest=NEWEST), title, project)
    problem = ""
    try:
        found = list_jobs(look.db, look.titles(), wanted, look.now_ms, limit)
    except UsageError as refused:
        problem = str(refused)
        found = list_jobs(look.db, look.titles(), replace(wanted, title=None, project=None), look.now_ms, limit)
    tabs = [("", "All", sum(found.counts.values())), *((one, one.capitalize(), found.counts[one]) for one in STATES)]
    values = {
        "found": found,
        "state": state if state in STATES else "",
        "tabs": [(_link("jobs", look, state=name, limit=""), told, number, name) for name, told, number in tabs],
        "asked": {"error": error or "", "title": title or "", "project": project or ""},
        "groups": _groups(look, state, error),
        "newest": NEWEST,
        "problem": problem or found.problem,
        "more": None if found.is_all or limit == JOBS_MAX else _link("jobs", look, limit=limit * 4),
    }
    return Page("jobs.html", "Dead jobs" if state == "dead" else "Jobs", values)


def _groups(look: Look, state: str, error: str | None) -> dead_letters.Listed | None:
    """Of what is not tried again: by error, or by reason."""
    if state == "dead":
        found = dead_letters.list_dead(look.db, Choice(), JOBS)
        return replace(found, groups=tuple(one for one in found.groups if error in (None, one.fingerprint)))
    return dead_letters.list_dropped(look.db, 0, 1) if state == "dropped" else None


def job(look: Look) -> Page:
    name = look.text("key") or ""
    titles = look.titles()
    try:
        found, problem = open_jobs(look.db, titles, name, look.now_ms) if name else [], titles.problem
    except UnknownJobError as error:
        found, problem = [], str(error)
    return Page("job.html", "Job", {"found": found, "name": name, "problem": problem})


def stats(look: Look) -> Page:
    by = look.asked.get("by", GROUPS[0])
    by = by if by in GROUPS else GROUPS[0]
    length = look.number("days", DAYS_SHOWN, SPANS_OF_DAYS[-1])
    project = look.text("project")
    since_ms = midnight_ms(look.now_ms - length * DAY_MS)
    values: dict[str, object] = {
        "by": by,
        "project": project or "",
        "length": length,
        "groups": [(_link("stats", look, by=one), one) for one in GROUPS],
        "spans": [(_link("stats", look, days=one), one) for one in SPANS_OF_DAYS],
        "found": None,
        "problem": "",
    }
    try:
        found = read_stats(look.db, look.store(), by, since_ms, project)
    except StoreError as error:
        return Page("stats.html", "Stats", {**values, "problem": str(error)})
    told = names(found.sums)
    shown = list(zip(found.sums, told, strict=True))[:SUMS]
    costs = [Column(name, (one.cost_usd,), f"{name}: {usd(one.cost_usd)}") for one, name in shown]
    tokens = [Column(name, _tokens(one), f"{name}: {short(int(sum(_tokens(one))))} tokens") for one, name in shown]
    values |= {"found": found, "shown": shown, "costs": chart(costs), "tokens": chart(tokens)}
    return Page("stats.html", "Stats", values)


def _tokens(one: Sum) -> tuple[float, ...]:
    return one.output_tokens, one.input_tokens, one.cache_read_tokens + one.cache_write_tokens


def sent(look: Look) -> Page:
    session_name = look.text("session")
    length = look.number("days", SENT_DAYS, SPANS_OF_DAYS[-1])
    found = read_sent(look.db, look.titles(), look.now_ms - length * DAY_MS, session_name)
    values = {
        "found": found,
        "session": session_name,
        "length": length,
        "spans": [(_link("sent", look, days=one), one) for one in SPANS_OF_DAYS],
    }
    return Page("sent.html", "Sent", values)


def doctor(site: Site, now_ms: int) -> Page:
    """Needs no queue: it says what is wrong with one."""
    found = list(examine(site.sources, site.directory, now_ms, is_quick=True))
    by_level: dict[str, list[Finding]] = {"problem": [], "warning": [], "ok": []}
    for one in found:
        by_level[one.level].append(one)
    told = [counted(len(by_level[level]), level) for level in ("problem", "warning") if by_level[level]]
    values = {"faults": by_level["problem"] + by_level["warning"], "well": by_level["ok"],
              "told": ", ".join(told) or "nothing is wrong", "left_out": len(THOROUGH)}  # fmt: skip
    return Page("doctor.html", "Doctor", values)


def _link(page: str, look: Look, **changed: object) -> str:
    """The address of this page with other parameters."""
    told: Mapping[str, object] = {**look.asked, **changed}
    return f"{page}?{urlencode({name: value for name, value in told.items() if value != ''})}"

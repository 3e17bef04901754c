"""Traits of OTLP destinations: their routes by preset, and what each can be asked and told. Pure.

    preset    sent again   a turn that changed   stored?            taken back
    phoenix   ignored      deleted first         asked              deleted
    mlflow    replaced     deleted first         asked              deleted
    none      unknown      not sent              cannot be asked    impossible

Measured on Phoenix 20.26.1 and MLflow 3.17.2. Phoenix ignores other content under a span's id, and says 200. MLflow
takes it, and keeps the spans that are not sent any more and, in its list, the texts of before: so both are told to
delete first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import quote

from app.exporters.traits import Changed, Plan, Recalled, Resent, Traits
from app.runtime.url import normalise

Preset: TypeAlias = Literal["phoenix", "mlflow", "none"]
ROUTE = "/v1/traces"
DEFAULT_PROJECT = "default"
"""Of Phoenix, where nothing names another one."""
LOOKS_MS = (2_000, 15_000, 60_000)
"""When a turn is looked for, after its delivery. Phoenix answers before it stores, mostly by less than a second."""
GROWTH = 4
"""Each round of looks after another sending is so many times as long."""
QUERIES_PER_MINUTE = 600

_PHOENIX_CAUSES = (
    "Phoenix was stopped before it had stored what it had accepted",
    "Phoenix's database was locked or full: see its log",
    "the project has the same session or trace in another project of this Phoenix, where it stays",
)
_MLFLOW_CAUSES = ("the trace was deleted there, or the experiment is another one",)
_CAUSES: dict[Preset, tuple[str, ...]] = {"phoenix": _PHOENIX_CAUSES, "mlflow": _MLFLOW_CAUSES, "none": ()}
_RESENT: dict[Preset, Resent] = {"phoenix": "ignored", "mlflow": "replaced", "none": "unknown"}


def traits(preset: Preset, project: str) -> Traits:
    """`project`: Phoenix's by its name, MLflow's experiment by its number; '' for the receiver's default."""
    return OtlpTraits(preset, project)


@dataclass(frozen=True, slots=True)
class OtlpTraits:
    """One preset's, for one project."""

    preset: Preset
    project: str

    @property
    def RECORDS_AT_ONCE(self) -> int:  # noqa: N802 - a constant
        """The record with the root is the one that is read back: it goes last."""
        return 1

    @property
    def NOT_STORED_CAUSES(self) -> tuple[str, ...]:  # noqa: N802
        return _CAUSES[self.preset]

    @property
    def RESENT(self) -> Resent:  # noqa: N802
        return _RESENT[self.preset]

    @property
    def CHANGED(self) -> Changed:  # noqa: N802
        return "not sent" if self.preset == "none" else "deleted first"

    @property
    def RECALLED(self) -> Recalled:  # noqa: N802
        return "impossible" if self.preset == "none" else "deleted"

    def routes(self, endpoint: str) -> tuple[str, ...]:
        """One: the endpoint may name it in full, as `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` does."""
        return (_base(endpoint) + ROUTE,)

    def read_back(
        self, setting: Literal["auto", "on", "off"], endpoint: str, api_key: str, chosen_url: str | None
    ) -> Plan:
        """Everywhere by preset: `chosen_url` is the base, where it is another one than the endpoint's."""
        del api_key
        base = _base(chosen_url or endpoint)
        urls: dict[Preset, str | None] = {
            "phoenix": f"{base}/v1/projects/{quote(self.project or DEFAULT_PROJECT, safe='')}/spans",
            "mlflow": f"{base}/api/3.0/mlflow/traces",
            "none": None,
        }
        url = None if setting == "off" else urls[self.preset]
        reason = "confirm is off" if setting == "off" else "plain OTLP cannot be asked: accepted, unverified"
        return Plan(url, "" if url else reason, is_sampled=False, queries_per_minute=QUERIES_PER_MINUTE)

    def looks_ms(self, route: str | None, resends: int) -> tuple[int, ...]:
        """When a job is looked for, in milliseconds after its delivery.

        >>> traits("phoenix", "").looks_ms(None, 1)
        (8000, 60000, 240000)
        """
        del route
        return tuple(look_ms * GROWTH**resends for look_ms in LOOKS_MS)

    def deletion_url(self, endpoint: str) -> str | None:
        urls: dict[Preset, str | None] = {
            "phoenix": f"{_base(endpoint)}{ROUTE}",
            "mlflow": f"{_base(endpoint)}/api/2.0/mlflow/traces/delete-traces",
            "none": None,
        }
        return urls[self.preset]

    def session_url(self, endpoint: str, api_key: str, dashboard: str | None, session: str, name: str) -> str | None:
        """Phoenix leads on from there; where MLflow shows a session was not tried."""
        del api_key, name
        if self.preset != "phoenix":
            return None
        return f"{normalise(dashboard) if dashboard else _base(endpoint)}/redirects/sessions/{quote(session, safe='')}"


def _base(endpoint: str) -> str:
    return normalise(endpoint).removesuffix(ROUTE)

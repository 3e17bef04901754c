"""Metrics of the centre: what waits by tenant and machine, in the text format of Prometheus. No session, no key."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.operations.fleet import CentreStatus, DestinationStatus
from app.operations.metrics import PREFIX, gauge


def exposition(found: CentreStatus | None) -> bytes:
    """All of it; None: the database cannot be asked, and no more than that is told."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(found))
    return generate_latest(registry)


class _Numbers(Collector):
    def __init__(self, found: CentreStatus | None) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        found = self._found
        yield gauge("info", "1, with the version as a label.", 1, {"version": __version__})
        told = "1 where the centre's database can be asked."
        yield gauge("fleet_database_up", told, int(found is not None), {})
        if found is None:
            return
        yield from _of_machines(found)
        yield from _of_tenants(found.destinations)
        for name, processes in (("workers", found.workers), ("intakes", found.intakes)):
            alive = sum(not one.is_silent for one in processes)
            yield gauge(f"fleet_{name}", f"{name.capitalize()} that are alive.", alive, {})


def _of_machines(found: CentreStatus) -> Iterator[Metric]:
    labels = ["tenant", "machine"]
    logs = GaugeMetricFamily(f"{PREFIX}_fleet_logs", "Logs by state.", labels=[*labels, "state"])
    oldest = GaugeMetricFamily(
        f"{PREFIX}_fleet_oldest_pending_seconds", "Age of the log that waits longest.", labels=labels
    )
    for one in found.destinations:
        for of in one.machines:
            names = [one.tenant or "", of.machine]
            by_state = {"pending": of.waiting, "dead": of.dead, "delivered": of.delivered, "dropped": of.dropped}
            for state, number in by_state.items():
                logs.add_metric([*names, state], number)
            waited_ms = 0 if of.oldest_waiting_ms is None else max(0, found.now_ms - of.oldest_waiting_ms)
            oldest.add_metric(names, waited_ms / 1000)
    yield from (logs, oldest)


def _of_tenants(destinations: tuple[DestinationStatus, ...]) -> Iterator[Metric]:
    label = ["tenant"]
    is_up = GaugeMetricFamily(f"{PREFIX}_fleet_tenant_up", "1 unless its Helicone is down or refuses.", labels=label)
    held = GaugeMetricFamily(f"{PREFIX}_fleet_held_bytes", "Bodies that wait or are dead, compressed.", labels=label)
    most = GaugeMetricFamily(f"{PREFIX}_fleet_held_bytes_max", "What these may take (--bytes-max).", labels=label)
    for one in destinations:
        if one.tenant is None:
            continue
        is_up.add_metric([one.tenant], int(one.health not in {"down", "refused"}))
        held.add_metric([one.tenant], one.held_bytes)
        if one.bytes_max is not None:
            most.add_metric([one.tenant], one.bytes_max)
    yield from (is_up, held, most)

"""Several destinations in one ledger: what one of them has or lacks is nothing to the other."""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass

import pytest

from app.ledger import (
    adoption,
    claims,
    confirmations,
    destinations,
    eviction,
    flow,
    folders,
    history,
    pruning,
    readback,
)
from app.ledger.destinations import Destination, own_room
from tests.support.ledger_bench import LedgerBench, version

HERE = "http://127.0.0.1:6006"


@dataclass(slots=True)
class Site:
    """Helicone under two keys, and two other receivers."""

    db: sqlite3.Connection
    helicone: LedgerBench
    old_key: LedgerBench
    phoenix: LedgerBench
    mlflow: LedgerBench

    def one(self, bench: LedgerBench) -> Destination:
        return destinations.by_id(self.db, bench.destination)


@pytest.fixture
def site(db: sqlite3.Connection) -> Site:
    def bench(endpoint: str, fingerprint: str, kind: str = "helicone", name: str = "") -> LedgerBench:
        made = LedgerBench(db)
        made.destination = destinations.destination(db, endpoint, fingerprint, 500_000, kind).id
        if name:
            destinations.note_name(db, made.destination, name)
        return made

    return Site(
        db,
        bench("https://example.invalid", "fingerprint"),
        bench("https://example.invalid", "before"),
        bench(HERE, "of phoenix", "otlp", "phoenix"),
        bench("http://127.0.0.1:5000", "of mlflow", "otlp", "mlflow"),
    )


def elsewhere(bench: LedgerBench) -> dict[str, int]:
    return history.exported_elsewhere(bench.db, bench.destination, "ses_1")


def test_what_one_destination_has_says_nothing_of_another_that_settings_name(site: Site) -> None:
    for bench in (site.helicone, site.phoenix):
        bench.put(version())
        bench.deliver(version())
    assert elsewhere(site.old_key) == {"t1": 100}  # two keys may be of one organisation
    assert elsewhere(site.mlflow) == elsewhere(site.phoenix) == elsewhere(site.helicone) == {}


def test_what_a_destination_had_that_no_setting_names_any_more_counts_for_its_kind(site: Site) -> None:
    site.phoenix.put(version())
    site.phoenix.deliver(version())
    destinations.keep_names(site.db, ["mlflow"])
    assert elsewhere(site.mlflow) == {"t1": 100}
    assert elsewhere(site.helicone) == {}


def test_other_headers_make_another_destination_of_the_same_name(site: Site) -> None:
    site.phoenix.put(version())
    rotated = destinations.destination(site.db, HERE, "of phoenix, new key", 600_000, "otlp")
    destinations.note_name(site.db, rotated.id, "phoenix")
    assert [one.name for one in destinations.destinations(site.db)] == ["", "", "", "mlflow", "phoenix"]
    assert history.exported_elsewhere(site.db, rotated.id, "ses_1") == {"t1": 100}
    destinations.note_name(site.db, rotated.id, "renamed")
    assert destinations.by_id(site.db, rotated.id).name == "renamed"


def test_a_fork_brings_along_what_its_origin_has_at_the_same_destination(site: Site) -> None:
    site.helicone.put(version())

    def brought(bench: LedgerBench) -> set[str]:
        return history.brought_along(bench.db, bench.destination, "ses_fork", {"copy": 100})

    assert brought(site.helicone) == brought(site.old_key) == {"copy"}
    assert brought(site.phoenix) == set()
    site.phoenix.put(version())
    assert brought(site.phoenix) == {"copy"}
    assert brought(site.mlflow) == set()
    site.mlflow.put(version(session="ses_fork", turn="copy"))
    site.phoenix.put(version(session="ses_other", turn="t2", last_event_ms=7))
    assert brought(site.phoenix) == {"copy"}  # what the fork exported elsewhere is not its own here


def test_nothing_moves_to_a_destination_of_another_kind_by_itself(site: Site) -> None:
    keyless = LedgerBench(site.db)
    keyless.destination = destinations.destination(site.db, "", "", 0).id
    keyless.put(version())
    adoption.take_over(site.db, site.one(site.phoenix), 2_000)
    assert keyless.row()["destination_id"] == keyless.destination
    keyless.db.execute("update destination set health = 'refused', pause_reason = 'x', probe_ms = 1")
    keyless.db.execute("update destination set endpoint = ? where id = ?", (HERE, site.old_key.destination))
    site.old_key.put(version(session="ses_2"))
    folders.remember_folder(site.db, "", site.phoenix.destination, {}, 1)
    adoption.adopt_rotated(site.db, site.one(site.phoenix), 2_000)
    assert site.old_key.row(version(session="ses_2"))["destination_id"] == site.old_key.destination


def test_turns_that_ended_before_a_destination_was_first_seen_are_for_a_person(site: Site) -> None:
    assert site.one(site.phoenix).begun_ms == 500_000 - destinations.STARTING_MS
    assert site.one(site.helicone).begun_ms == 0


# --- another address


def test_what_waits_goes_to_the_new_address_and_a_pause_ends(site: Site) -> None:
    bench = site.helicone
    bench.put(version())
    destinations.remember_route(site.db, bench.destination, f"{HERE}/custom/v1/log")
    flow.pause(site.db, bench.destination, health="refused", reason="401", count=3, probe_ms=10**12, now_ms=1)
    assert bench.claim() is None
    assert destinations.readdress(site.db, bench.destination, "https://elsewhere.invalid", "new")
    one = site.one(bench)
    assert (one.endpoint, one.key_fingerprint, one.health) == ("https://elsewhere.invalid", "new", "fine")
    assert (one.pause_reason, one.probe_ms, one.route, one.concurrency) == (None, None, None, 1)
    assert bench.claim() is not None


def test_no_two_destinations_have_one_address(site: Site) -> None:
    taken = site.one(site.old_key)
    before = site.one(site.helicone)
    assert not destinations.readdress(site.db, site.helicone.destination, taken.endpoint, taken.key_fingerprint)
    assert site.one(site.helicone) == before
    assert destinations.readdress(site.db, before.id, before.endpoint, before.key_fingerprint)
    assert site.one(site.helicone) == before


@pytest.mark.parametrize(
    ("endpoint", "is_kept"), [("https://example.invalid", True), ("https://elsewhere.invalid", False)]
)
def test_what_was_found_at_a_place_is_known_of_that_place_alone(site: Site, endpoint: str, *, is_kept: bool) -> None:
    here = site.helicone.destination
    control = readback.Control(uuid.UUID(int=7), 1, 1)
    readback.note_found(site.db, here, control)
    readback.pause_read_back(site.db, here, "401", 10**12)
    destinations.readdress(site.db, here, endpoint, "new")
    assert readback.control(site.db, here) == (control if is_kept else None)
    assert readback.read_back_failures(site.db, here, 1) == 0


# --- room


def fill(bench: LedgerBench, turns: int) -> int:
    """So many jobs; how many bytes they hold."""
    for number in range(turns):
        bench.put(version(turn=f"t{number}", session=f"ses_{bench.destination}"))
    return held(bench)


def held(bench: LedgerBench) -> int:
    row = bench.db.execute("select sum(body_bytes) from job where destination_id = ?", (bench.destination,)).fetchone()
    return int(row[0])


def jobs(bench: LedgerBench, state: str) -> int:
    row = bench.db.execute(
        "select count(*) from job where destination_id = ? and state = ?", (bench.destination, state)
    ).fetchone()
    return int(row[0])


def test_each_destination_has_its_own_room_and_helicones_keys_share_theirs(site: Site) -> None:
    of_phoenix, of_helicone = fill(site.phoenix, 10), fill(site.helicone, 2) + fill(site.old_key, 1)
    room = own_room(site.one(site.phoenix))
    assert (own_room(site.one(site.helicone)), room) == (None, site.phoenix.destination)
    assert eviction.held_bytes(site.db) == of_helicone
    assert eviction.held_bytes(site.db, room) == of_phoenix
    assert eviction.excess_of_folders(site.db, {"": 1}) == {"": of_helicone - 1}
    assert eviction.excess_of_folders(site.db, {"": 1}, room) == {"": of_phoenix - 1}
    assert len(eviction.candidates(site.db, None)) == 3
    assert len(eviction.candidates(site.db, None, room=room)) == 10


def test_what_one_destination_holds_too_much_is_never_taken_from_another(site: Site) -> None:
    of_helicone = fill(site.helicone, 3)
    fill(site.phoenix, 10)
    room = own_room(site.one(site.phoenix))
    assert pruning.drop_oversize(site.db, 5_000, of_helicone) == 0
    assert pruning.drop_oversize(site.db, 5_000, of_helicone, room=room) == jobs(site.phoenix, "dropped") > 0
    left = jobs(site.phoenix, "pending")
    assert pruning.drop_oversize(site.db, 5_000, 1 << 40, {"": 0}, room=room) == left > 0
    assert (held(site.helicone), jobs(site.helicone, "pending")) == (of_helicone, 3)
    assert pruning.drop_oversize(site.db, 5_000, 0) == 3


def test_what_waits_to_be_confirmed_makes_room_for_its_own_destination(site: Site) -> None:
    for bench in (site.helicone, site.phoenix):
        bench.put(version(session=f"ses_{bench.destination}"))
        claimed = bench.claimed(version(session=f"ses_{bench.destination}"))
        for body in bench.left(claimed):
            bench.acknowledge(claimed, body)
        claims.complete(site.db, claimed, 2_000, confirm_ms=3_000)

    def give_up(room: int | None, of_folders: dict[str, int]) -> int:
        return confirmations.give_up_confirmations(
            site.db,
            4_000,
            bytes_max=1 << 40 if of_folders else 0,
            age_ms_max=1 << 40,
            bytes_max_of=of_folders,
            room=room,
        )

    assert give_up(own_room(site.one(site.mlflow)), {}) == 0
    assert give_up(own_room(site.one(site.phoenix)), {"": 0}) == 1
    assert give_up(None, {}) == 1

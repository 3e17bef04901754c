"""Limits of single folders, as SQL in statements about the jobs of all folders.

Limits come in as `{folder: limit}`, for few folders or none, and reach SQL as one JSON value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from app.database.connection import Database

Limits = Mapping[str, int]
"""By folder, as the ledger knows it."""
NO_LIMITS: Limits = MappingProxyType({})

AGE_MS = (
    "coalesce((select cast(l.value as bigint) from session s join json_each(:ages) l on l.key = s.folder"
    " where s.id = job.session_id), :age)"
)
"""The age at which a `job` is too old: of its folder in `:ages`, elsewhere `:age`."""

# In this order, so that what has bodies is read by its index and nothing of a folder that has no limit is counted.
_OF_FOLDERS = (
    "from job j cross join session s on s.id = j.session_id cross join json_each(:limits) l on l.key = s.folder"
)


def excess(db: Database, bytes_max: Limits, which: str, room: int | None) -> dict[str, int]:
    """How many bytes each folder holds beyond its limit in the jobs `j` for which `which` holds; only where it does."""
    if not bytes_max:
        return {}
    rows = db.execute(
        f"select s.folder, sum(j.body_bytes) - max(cast(l.value as bigint)) as excess {_OF_FOLDERS} where {which}"
        " group by s.folder having sum(j.body_bytes) > max(cast(l.value as bigint))",
        {"limits": as_json(bytes_max), "room": room},
    )
    return {row["folder"]: row["excess"] for row in rows}


def oldest(which: str, order: str) -> str:
    """A condition for `job`: of each folder in `:limits` the first of those for which `which` holds, in this order.

    As many as free the bytes that `:limits` says of the folder.
    """
    return (
        f"id in (select id from (select j.id, cast(l.value as bigint) as excess, sum(j.body_bytes)"
        f" over (partition by s.folder order by {order}, j.id) - j.body_bytes as older {_OF_FOLDERS} where {which})"
        " held where older < excess)"
    )


def as_json(limits: Limits) -> str:
    return json.dumps(dict(limits))

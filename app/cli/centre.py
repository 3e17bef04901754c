"""The centre's database, for the commands that need it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.errors import UsageError
from app.fleet import NOT_INSTALLED, is_missing

if TYPE_CHECKING:
    from app.database.postgres import PostgresLedger


@contextmanager
def centre() -> Iterator[PostgresLedger]:
    """Raises UsageError where the extra, or the variable, is missing; CentreError."""
    try:
        from app.operations.fleet import database  # noqa: PLC0415 - what the extra `fleet` brings
    except ImportError as error:
        if not is_missing(error):
            raise
        raise UsageError(NOT_INSTALLED) from None
    with database(os.environ) as db:
        yield db

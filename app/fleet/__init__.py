"""The centre: any number of worker processes on a ledger that is on a PostgreSQL server."""

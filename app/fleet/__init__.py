"""The centre: one ledger on a PostgreSQL server, for many machines and any number of workers."""

_INSTALL = "install it in a checkout, into an environment of its own: pip install '.[fleet]'"
NOT_INSTALLED = f"the centre needs the extra `fleet`: {_INSTALL}"


def is_missing(error: ImportError) -> bool:
    """Whether it is what the extra brings that could not be imported."""
    return (error.name or "psycopg").startswith("psycopg")

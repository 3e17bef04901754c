"""Writes the table of `docs/settings.md` from the settings' model and names; what each does is said here.

`python -m tests.settings_page` writes the page; a test checks that it is current.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from app.settings.model import Settings
from app.settings.names import IN_PLUGIN, IN_SYSTEM_FILE, NAMES, VARIABLES
from tests.support.checkout import ROOT

PAGE = ROOT / "docs" / "settings.md"
BEGIN = "<!-- made by python -m tests.settings_page: change the words there -->\n"
END = "<!-- end -->\n"

MEANINGS = {
    "enable": "`false`: nothing is captured, nothing is sent, nothing is made where no spool is",
    "api_key": "without it jobs wait; from the environment and `.env` files alone",
    "api_key_file": "the absolute path of a file that holds the key; set only one of the two",
    "endpoint": "base URL of Helicone, or a full log URL",
    "allow_http": "`http://` to another machine is refused without it: everybody on the way reads along",
    "ca_file": "a PEM file of certificates that are trusted beside Mozilla's list (`docs/network.md`)",
    "export_mode": "what leaves (`docs/privacy.md`)",
    "redact_patterns": "regular expressions (RE2), case-insensitive; what matches becomes `[REDACTED]`",
    "redact_secrets": "the built-in rules; OpenCode's files cannot switch them off",
    "user_id": "sent as `Helicone-User-Id`; never guessed",
    "session_path_prefix": "begins the path of every session at Helicone",
    "worker": "`auto`: the hook starts one; `external`: you do (`docs/install.md`)",
    "spool_directory": "where jobs are kept; on a disk of this machine",
    "max_spool_bytes": "of bodies not delivered. Beyond it the oldest go: what OpenCode's store still holds is read"
    " again from there when it is sent, the rest is dropped",
    "max_spool_age_ms": "how long a turn may wait; it is dropped afterwards",
    "flush_interval_ms": "the longest the worker may go without looking for due jobs (it looks more often)",
    "max_retries": "after the first attempt; then a job is dead",
    "retry_base_delay_ms": "before the first retry; doubles, with jitter",
    "confirm": "read back what was delivered: `auto` all where self-hosted, one turn an hour on the cloud; `on` all;"
    " `off` none",
    "dashboard_url": "where a browser finds a Helicone of your own: `status` links to its page of a session",
    "readback_url": "where to read back, if the endpoint does not say it: the base URL of Helicone's API server, jawn;"
    " it gets the key",
}
"""By field."""
OLDER = "the older name of `{variable}`: JSON, or patterns with commas between them; set only one"


def default(field: str) -> str:
    if field == "spool_directory":
        return "per user"
    value = getattr(Settings(), field)
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def allowed(field: str) -> str:
    """What the value may be: words, or the least number and its unit."""
    about = Settings.model_fields[field]
    if get_origin(about.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(about.annotation))
    least = [one.ge for one in about.metadata if hasattr(one, "ge")]
    if least:
        return f"from {least[0]}, in {NAMES[field].unit}"
    return "`true`, `false`" if about.annotation is bool else ""


def places(field: str) -> str:
    option = NAMES[field].option
    return ", ".join([*(["plugin"] if option in IN_PLUGIN else []), *(["system"] if option in IN_SYSTEM_FILE else [])])


def table() -> Iterator[str]:
    yield "| option | variable | default | may be | also in | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for variable, field, _ in VARIABLES:
        name = NAMES[field]
        if variable == name.variable:
            option = "" if field == "api_key" else f"`{name.option}`"
            cells = [option, f"`{variable}`", default(field), allowed(field), places(field), MEANINGS[field]]
        else:
            cells = ["", f"`{variable}`", "", "", "", OLDER.format(variable=name.variable)]
        yield f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def page(text: str) -> str:
    """The page with today's table."""
    made = BEGIN + "\n".join(["", *table(), "", ""]) + END
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: made, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")

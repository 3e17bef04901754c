"""Names of each setting outside of Python, how the text of its variable is read, and where it may stand."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from pydantic import SecretStr


def _read_truth(text: str) -> object:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return words.get(text.lower(), text)


def _read_whole(text: str) -> object:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _read_list(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_alias(text: str) -> object:
    r"""A JSON list of strings, or patterns with commas between them, as the plugin that this one replaces had it.

    Its comma would cut `\d{2,4}` into two patterns that compile and redact nothing: that needs the JSON list.
    """
    if text == "[]" or re.match(r'\[\s*"', text):
        return _read_list(text)
    if re.search(r"\{[0-9]*,[0-9]*\}", text):
        return text
    return [pattern for piece in text.split(",") if (pattern := piece.strip())]


@dataclass(frozen=True, slots=True)
class Name:
    """A setting's names outside of Python, its unit, and how its variable's text is read.

    A `read` that does not understand the text returns it as it is: then the validation refuses it, in its own words.
    """

    option: str
    variable: str
    read: Callable[[str], object] = str
    unit: str = ""
    plugin: bool = True
    """It may stand among the plugin's options."""


NAMES = {
    "enable": Name("enable", "OPENCODE_HELICONE_ENABLE", _read_truth),
    "api_key": Name("apiKey", "HELICONE_API_KEY", SecretStr, plugin=False),
    "api_key_file": Name("apiKeyFile", "HELICONE_API_KEY_FILE", plugin=False),
    "endpoint": Name("endpoint", "HELICONE_ENDPOINT", plugin=False),
    "allow_http": Name("allowHttp", "OPENCODE_HELICONE_ALLOW_HTTP", _read_truth, plugin=False),
    "ca_file": Name("caFile", "OPENCODE_HELICONE_CA_FILE", plugin=False),
    "export_mode": Name("exportMode", "OPENCODE_HELICONE_EXPORT_MODE"),
    "redact_patterns": Name("redactPatterns", "OPENCODE_HELICONE_REDACT_PATTERNS", _read_list),
    "redact_secrets": Name("redactSecrets", "OPENCODE_HELICONE_REDACT_SECRETS", _read_truth),
    "user_id": Name("userId", "OPENCODE_HELICONE_USER_ID", plugin=False),
    "session_path_prefix": Name("sessionPathPrefix", "OPENCODE_HELICONE_SESSION_PATH_PREFIX"),
    "worker": Name("worker", "OPENCODE_HELICONE_WORKER"),
    "spool_directory": Name("spoolDirectory", "OPENCODE_HELICONE_SPOOL_DIRECTORY"),
    "max_spool_bytes": Name("maxSpoolSize", "OPENCODE_HELICONE_MAX_SPOOL_SIZE", _read_whole, "bytes"),
    "max_spool_age_ms": Name("maxSpoolAge", "OPENCODE_HELICONE_MAX_SPOOL_AGE", _read_whole, "milliseconds"),
    "flush_interval_ms": Name("flushInterval", "OPENCODE_HELICONE_FLUSH_INTERVAL", _read_whole, "milliseconds"),
    "max_retries": Name("maxRetries", "OPENCODE_HELICONE_MAX_RETRIES", _read_whole, "retries"),
    "retry_base_delay_ms": Name("retryBaseDelay", "OPENCODE_HELICONE_RETRY_BASE_DELAY", _read_whole, "milliseconds"),
    "confirm": Name("confirm", "OPENCODE_HELICONE_CONFIRM"),
    # It gets the API key: a project's own file must not say where that goes.
    "readback_url": Name("readbackUrl", "HELICONE_READBACK_URL", plugin=False),
    "dashboard_url": Name("dashboardUrl", "HELICONE_DASHBOARD_URL", plugin=False),
}
VARIABLES = [(name.variable, field_name, name.read) for field_name, name in NAMES.items()]
VARIABLES.append(("OPENCODE_HELICONE_REDACT_REGEX", "redact_patterns", _read_alias))
TOKEN_BEGINS = "sk-helicone-fleet"  # noqa: S105 - no whole one
"""What a token for an intake begins with, so that whoever has none need not load what one looks like."""
OURS = "OPENCODE_HELICONE_"
"""What the name of every variable begins with that is ours alone. (Others read `HELICONE_*`, too.)"""
FOR_TESTS = ("OPENCODE_HELICONE_CRASH_AT", "OPENCODE_HELICONE_TEST_BINARY", "OPENCODE_HELICONE_TEST_CACHE")
"""Variables of ours that are no settings."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A suggestion to end a complaint with; nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]}?" if near else ""


DATABASE_URL = "OPENCODE_HELICONE_DATABASE_URL"
LISTEN_URL = "OPENCODE_HELICONE_DATABASE_LISTEN_URL"
CENTRAL = (DATABASE_URL, LISTEN_URL)
"""Of workers whose ledger is on a PostgreSQL server. They are no settings: a laptop has nothing to do with them."""
TIGHTENING = ("enable", "export_mode", "redact_patterns", "redact_secrets")
"""What decides how much may leave."""
Limit: TypeAlias = Literal["max_spool_bytes", "max_spool_age_ms", "max_retries"]
"""A setting that a project's files set for their own folder alone."""
LIMITS: tuple[Limit, ...] = get_args(Limit)
CAPTURE = ("enable", "export_mode", "redact_patterns", "redact_secrets", "session_path_prefix", "user_id")
DELIVERY = (
    "flush_interval_ms",
    "max_retries",
    "retry_base_delay_ms",
    "max_spool_bytes",
    "max_spool_age_ms",
    "confirm",
)


BY_OPTION = {name.option: field_name for field_name, name in NAMES.items()}
IN_CONFIG_FILE = {option: name for option, name in BY_OPTION.items() if name != "api_key"}
IN_SYSTEM_FILE = {NAMES[name].option: name for name in TIGHTENING}
ALLOWED_ENDPOINTS = "allowedEndpoints"
"""In the system-wide file beside these: where logs may be sent, and where they may be read back."""
IN_PLUGIN = {option: name for option, name in BY_OPTION.items() if NAMES[name].plugin}
HELD = "held"
"""In a record beside options: why nothing of the folder may leave."""
HELD_BY_FILES = "heldByFiles"
"""The same: all of that stands in files that whoever looks into the folder finds."""
IN_RECORD = {option: name for option, name in BY_OPTION.items() if name in CAPTURE + DELIVERY}
ON_COMMAND_LINE = {name: name for name in NAMES if name != "api_key"}

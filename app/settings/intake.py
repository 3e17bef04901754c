"""Intake: what a machine and its company's intake say to each other, and what of it the machine keeps in its spool.

    machine ─ POST /custom/v1/log, under its token ─▶ intake      a log, with the two headers below
    machine ─ GET /custom/v1/machine ───────────────▶ intake      `IntakeAnswer`: what may leave, what became of what came
    machine ─ POST /custom/v1/states ───────────────▶ intake      `{"requestIds": [...]}` -> what became of each

Only the form of the token makes a destination an intake: an address tells nothing.
"""

from __future__ import annotations

import re

TOKEN = re.compile(r"sk-helicone-fleet\d\d(-[a-z0-9]{7}){3}", re.ASCII)
"""As a key of Helicone, so that a machine needs nothing but another key and another endpoint."""

LOG_PATH = "/custom/v1/log"
MACHINE_PATH = "/custom/v1/machine"
STATES_PATH = "/custom/v1/states"

MODE_HEADER = "OpenCode-Helicone-Mode"
"""Of a log: the export mode that it was made under."""
TURN_HEADER = "OpenCode-Helicone-Turn-Ms"
"""Of a log: the time of the last event of its turn, in milliseconds UTC. A version that comes late is known by it."""

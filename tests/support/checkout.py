"""Where this checkout lies, and the files that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
"""Recordings, golden files, cases, plugins of old, frozen files."""

"""A real Chromium, headless, by Playwright. It is not installed here: where there is none, its tests are skipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import axe_playwright_python
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
AXE = Path(str(axe_playwright_python.__file__)).parent / "axe.min.js"
"""The rules of accessibility that are asked (axe-core)."""

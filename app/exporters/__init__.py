"""Exporters: kinds of destination, a package for each, and what the rest of the program knows of them."""

import sys

# Else httpx loads its command, and with it rich, pygments and click: 4 MB and 30 ms of each worker, for nothing.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

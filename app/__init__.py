"""Exports OpenCode sessions to Helicone through a durable SQLite job queue."""

__version__ = "0.2.0"

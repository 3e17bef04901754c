"""Exports OpenCode sessions to Helicone through a durable SQLite job queue."""

__version__ = "0.1.0"

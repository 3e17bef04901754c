"""Backfill: sessions that OpenCode already has, or files of them, become jobs."""

"""Capture: what the plugin says, or a command reads, becomes jobs in the ledger."""

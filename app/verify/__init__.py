"""Verify: compares OpenCode's store with the ledger, and with Helicone."""

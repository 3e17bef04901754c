"""OpenCode's store against the ledger, and against Helicone."""

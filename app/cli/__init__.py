"""Command line: what a person types and is shown."""

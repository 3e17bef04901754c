"""Helicone: which logs a turn becomes, their exact bytes, and the wire."""

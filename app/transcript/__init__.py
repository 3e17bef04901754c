"""Transcript: what happened in a session, as values, and how it is read out of an agent's JSON."""

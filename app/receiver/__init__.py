"""Receiver: a local server that answers as Helicone does, for trying, the demo and tests."""

"""The other side: a local server that answers as Helicone does."""

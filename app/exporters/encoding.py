"""Encodes: the one encoder that there is. Light enough for hooks to load."""

from app.exporters.encoder import Encoder
from app.exporters.helicone import encoder

ENCODER: Encoder = encoder

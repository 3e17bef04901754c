"""Encodes: the one encoder that there is. Light enough for hooks to load."""

from app.exporters.encoder import Overwriting
from app.exporters.helicone import encoder

ENCODER: Overwriting = encoder

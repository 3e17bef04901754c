"""Kinds of destination: Helicone is the only one. Light enough for hooks to load."""

from app.exporters.encoder import Encoder
from app.exporters.helicone import encoder, traits
from app.exporters.traits import Traits

ENCODER: Encoder = encoder
TRAITS: Traits = traits

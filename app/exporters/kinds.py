"""Which kinds of destination there are: Helicone. What is loaded here is light enough for hooks."""

from app.exporters.encoder import Encoder
from app.exporters.helicone import encoder, traits
from app.exporters.traits import Traits

ENCODER: Encoder = encoder
TRAITS: Traits = traits

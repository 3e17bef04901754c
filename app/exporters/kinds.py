"""Kinds of destination: Helicone is the only one. Commands that encode nothing do without `app.exporters.encoding`."""

from app.exporters.helicone import traits
from app.exporters.traits import Traits

TRAITS: Traits = traits

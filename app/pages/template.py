"""Templates: text of others is escaped, and a value that is missing is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.runtime.figures import ago, local, short, size, took, usd
from app.runtime.terminal import counted, span

_SHARED = Path(__file__).parent / "templates"


class Templates:
    """The templates in a folder of a server's own, and those that all share: the frame of a page, waterfall, chart."""

    def __init__(self, folder: Path) -> None:
        self._environment = Environment(
            loader=FileSystemLoader([folder, _SHARED]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "ago": ago,
            "counted": counted,
            "local": local,
            "number": "{:,}".format,
            "short": short,
            "size": size,
            "span": span,
            "took": took,
            "usd": usd,
        }

    def render(self, name: str, values: Mapping[str, object]) -> str:
        return self._environment.get_template(name).render(values)

"""What the built-in rules mask in other people's source: mostly what is no secret at all.

The source is that of the packages in `packages.txt`, fetched once into a cache. What was read there and is a secret
that somebody wrote down as an example stands in `docs/example_secrets.tsv`, by file, rule and number, without its text.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from app.privacy.redact import REDACTED, Redaction
from app.transcript.attachments import strip_blobs
from tests.support.checkout import DATA, ROOT

PACKAGES = DATA / "packages.txt"
EXAMPLES = ROOT / "docs" / "example_secrets.tsv"
_BYTES_MIN = 60_000_000
_PER_10_MB_MAX = 1.0
_BEFORE, _MASKED, _AFTER = 60, 80, 30
"""Letters shown of what stands around a hit, and of the hit."""

Hits = Counter[tuple[str, str]]
"""By file and rule."""


@dataclass(slots=True)
class Found:
    size: int
    hits: Hits
    shown: dict[str, list[str]]
    """By file, each hit with what stands around it."""


def examples() -> Hits:
    """How often each rule may hit in each file, because somebody wrote down an example there."""
    rows = [line.split("\t") for line in EXAMPLES.read_text("utf-8").splitlines()[1:]]
    return Counter({(file, rule): int(number) for file, rule, number, _ in rows})


def wheels() -> list[Path]:
    """Fetched where they are not there yet, in the order of the list."""
    cache = Path(os.environ.get("OPENCODE_HELICONE_TEST_CACHE") or ROOT / ".cache" / "opencode").absolute()
    folder = cache.parent / f"{cache.name}-packages"
    wanted = PACKAGES.read_text("utf-8").split()
    found = {pin: _wheel(folder, pin) for pin in wanted}
    if missing := [pin for pin, path in found.items() if path is None]:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, *missing], check=True)
    return [path for pin in wanted if (path := _wheel(folder, pin))]


def _wheel(folder: Path, pin: str) -> Path | None:
    name, _, version = pin.partition("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def texts(wheel: Path) -> Iterator[tuple[str, str]]:
    """Path and text of all that is text."""
    package = wheel.name.partition("-")[0]
    with ZipFile(wheel) as archive:
        for entry in archive.infolist():
            data = archive.read(entry)
            try:
                text = data.decode()
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                yield f"{package}: {entry.filename}", text.replace(REDACTED, "[-]")


def look(source: Iterator[tuple[str, str]]) -> Found:
    redaction = Redaction.compile((), secrets=True)
    found = Found(0, Counter(), {})
    for name, text in source:
        found.size += len(text.encode())
        hits: Counter[str] = Counter()
        masked = redaction.text(text, hits)
        found.hits.update({(name, rule): number for rule, number in hits.items()})
        if hits:
            found.shown[name] = list(_shown(strip_blobs(text), masked))
    return found


def _shown(text: str, masked: str) -> Iterator[str]:
    """Each hit as `before «hit» after`: put back by what stands between the marks."""
    pieces = masked.split(REDACTED)
    at = len(pieces[0])
    for piece in pieces[1:]:
        end = text.find(piece, at + 1) if piece else len(text)
        before, after = text[max(0, at - _BEFORE) : at].rpartition("\n")[2], piece[:_AFTER].partition("\n")[0]
        yield f"{before.lstrip()}«{_short(text[at:end])}»{after.rstrip()}"
        at = end + len(piece)


def _short(hit: str) -> str:
    line = hit.replace("\n", "⏎")
    return line if len(line) <= _MASKED else f"{line[:_MASKED]}… ({len(line)})"


def report(found: Found, allowed: Hits) -> list[str]:
    """What is hit beyond the examples; the last line says so where that is too much."""
    beyond = found.hits - allowed
    for_each_10_mb = beyond.total() / (found.size / 10_000_000)
    lines: list[str] = []
    for file in dict.fromkeys(name for name, _ in beyond):
        counts = ", ".join(f"{rule} {number}" for (name, rule), number in beyond.items() if name == file)
        lines += (f"{file}: {counts} beyond the examples", *(f"    {line}" for line in found.shown[file]))
    lines.append(
        f"{found.size / 1e6:.0f} MB of source: {found.hits.total()} masked, {beyond.total()} beyond the examples, "
        f"{for_each_10_mb:.1f} for each 10 MB"
    )
    if for_each_10_mb > _PER_10_MB_MAX:
        lines.append(f"MISSED: at most {_PER_10_MB_MAX:.0f} for each 10 MB")
    if found.size < _BYTES_MIN:
        lines.append(f"MISSED: at least {_BYTES_MIN / 1e6:.0f} MB of source")
    return lines


def main(packages: list[str]) -> list[str]:
    """`packages`: only these, where any are named."""
    chosen = [wheel for wheel in wheels() if not packages or wheel.name.partition("-")[0] in packages]
    return report(look(pair for wheel in chosen for pair in texts(wheel)), examples())


if __name__ == "__main__":
    print("\n".join(main(sys.argv[1:])))

"""What it costs to search for known values, beside RE2's own search for the built-in keys, in texts not seen before.

    python benchmarks/known_values.py

Each line is a process of its own, and each text is searched once: RE2 keeps the states that it has been in, so that a
text that comes again costs a tenth. The texts are the standard library's source. The unit is what RE2's Set of the
built-in keys costs in the same run; the goal is a ratio to it.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import string
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import re2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from app.privacy.known_secrets import search_for  # noqa: E402 - from a checkout
from app.privacy.rules import rules  # noqa: E402

BYTES = 8_000_000
TEXT_BYTES = 50_000
REPEATS = 3
COUNTS = (20, 500)
GOAL = 4.0
"""Ratio for each of the counts."""


def texts() -> list[bytes]:
    whole = b""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        whole += path.read_bytes()
        if len(whole) >= BYTES:
            break
    return [whole[at : at + TEXT_BYTES] for at in range(0, min(len(whole), BYTES), TEXT_BYTES)]


def values(count: int) -> Iterator[str]:
    """As vendors make them: some with a beginning in common."""
    dice = random.Random(count)  # noqa: S311 - no secret hangs on them
    letters = string.ascii_letters + string.digits + "_-"
    for _ in range(count):
        beginning = dice.choice(["", "", "gh" + "p_", "sk-" + "proj-", "eyJ" + "hbGciOiJIUzI1NiJ9."])
        yield beginning + "".join(dice.choices(letters, k=dice.choice([20, 40, 60, 164])))


def keys() -> Callable[[bytes], object]:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    together = re2.Set.SearchSet(options)
    for word in {head.word for rule in rules() for head in rule.heads if not head.is_pattern}:
        together.Add(re2.escape(word))
    together.Compile()
    match: Callable[[bytes], object] = together.Match
    return match


def known(count: int) -> Callable[[bytes], object]:
    search = search_for(values(count))
    assert search is not None
    return lambda text: list(search.spans(text))


def cost_ms(count: int) -> float:
    """CPU per MB; of the keys where no known value is asked for."""
    search = known(count) if count else keys()
    corpus = texts()
    begun = time.process_time()
    for text in corpus:
        search(text)
    return (time.process_time() - begun) * 1e9 / sum(map(len, corpus))


def main() -> None:
    fresh = multiprocessing.get_context("spawn")
    found: dict[int, list[float]] = {count: [] for count in (0, *COUNTS)}
    for _ in range(REPEATS):
        for count, costs in found.items():
            with fresh.Pool(1) as process:
                costs.append(process.apply(cost_ms, (count,)))
    floor = statistics.median(found[0])
    print(f"RE2's Set of the built-in keys: {floor:.1f} ms per MB")
    is_missed = False
    for count in COUNTS:
        ratio = statistics.median(found[count]) / floor
        is_missed = is_missed or ratio > GOAL
        print(f"{count} known values: {ratio * floor:.1f} ms per MB, {ratio:.1f} times that (goal {GOAL:.0f})")
    sys.exit(is_missed)


if __name__ == "__main__":
    main()

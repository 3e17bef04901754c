"""The judge of the built-in rules: what is a secret to it, what it counts, and that the committed table is its own."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from tests.stress import false_hits, gitleaks
from tests.stress.gitleaks_samples import fixed_letters, in_python, sample
from tests.support.dress import leaks

PATTERNS = {rule.name: rule.pattern for rule in gitleaks.rules()}
AGAIN = ("aws-access-token", "github-pat", "grafana-service-account-token", "heroku-api-key", "private-key")
"""Rules of which the table is made again here."""


def committed() -> list[gitleaks.Row]:
    header, *lines = [line.split("\t") for line in gitleaks.TABLE.read_text("utf-8").splitlines()]
    assert tuple(header[3:]) == gitleaks.DRESSES
    return [
        gitleaks.Row(name, begins == "yes", int(samples), dict(zip(header[3:], map(int, counts), strict=True)))
        for name, begins, samples, *counts in lines
    ]


# --- texts from patterns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "letters"),
    [
        (r"ghp_[a-z]{36}", 4),
        (r"\b((?:sc|ext)_(?i)[a-z]{5})", 3),
        (r"(?:https?://)?hub\.[a-z]", 4),
        (r"(?:A3T[A-Z0-9]|AKIA)[A-Z]{16}", 3),
        (r"[\w.-]{0,50}?(?:adobe)", 0),
        (r"(?:\d|ab)c", 0),
        (r"xox[ab]-[0-9]", 5),
    ],
)
def test_fixed_letters_are_those_of_the_shortest_alternative(pattern: str, letters: int) -> None:
    assert fixed_letters(pattern) == letters


@pytest.mark.parametrize("pattern", [r"a(?i)b|c", r"(x(?i)y|z)w", r"(?i)a(?-i:B)c", r"x(?:(?i)a)b\z"])
def test_flags_count_to_the_end_of_their_group_as_in_go(pattern: str) -> None:
    wanted = {
        r"a(?i)b|c": ({"ab", "aB", "c", "C"}, {"Ab", "AB"}),
        r"(x(?i)y|z)w": ({"xyw", "xYw", "zw", "Zw"}, {"xyW", "Xyw", "zW"}),
        r"(?i)a(?-i:B)c": ({"aBc", "ABC"}, {"abc"}),
        r"x(?:(?i)a)b\z": ({"xab", "xAb"}, {"xaB", "xab\n"}),
    }
    fitting, others = wanted[pattern]
    compiled = re.compile(in_python(pattern))
    assert {text for text in fitting | others if compiled.fullmatch(text)} == fitting


@pytest.mark.parametrize("name", ["adobe-client-id", "gitlab-pat", "jwt", "slack-webhook-url", "stripe-access-token"])
def test_what_is_made_from_a_pattern_fits_it(name: str) -> None:
    texts = {sample(PATTERNS[name], Random(seed)) for seed in range(20)}  # noqa: S311 - the same texts each time
    assert len(texts) > 10
    assert all(re.search(in_python(PATTERNS[name]), text) for text in texts)


# --- what gitleaks says ----------------------------------------------------------------------------------------------


def test_all_rules_of_this_version_are_read_from_its_program() -> None:
    assert len(PATTERNS) == 221
    assert PATTERNS["github-pat"] == "ghp_[0-9a-zA-Z]{36}"


@pytest.mark.slow
def test_what_gitleaks_does_not_find_is_no_sample() -> None:
    known = gitleaks.Rule("github-pat", PATTERNS["github-pat"], ("ghp_",))
    other = gitleaks.Rule("gitlab-pat", PATTERNS["gitlab-pat"], ("glpat-",))
    text = sample(known.pattern, Random(1))  # noqa: S311 - the same text each time
    found = list(gitleaks.verified({known: [text, text[:-1], "ghp_" + 36 * "a"], other: [text]}))
    assert found == [("github-pat", gitleaks.Positive(text, begins=True))]


def test_a_secret_that_only_follows_a_name_has_no_beginning_of_its_own() -> None:
    rows = {row.rule: row.has_beginning for row in committed()}
    assert rows["github-pat"]
    assert not rows["adobe-client-id"]
    assert not rows["curl-auth-header"]
    assert not rows["sidekiq-sensitive-url"]


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_committed_table_is_what_the_judge_prints() -> None:
    chosen = [rule for rule in gitleaks.rules() if rule.name in AGAIN]
    rows = {row.rule: row for row in committed()}
    assert [row.rule for row in committed()] == list(PATTERNS)
    assert list(gitleaks.measured(chosen, gitleaks.SAMPLES, gitleaks.SEED)) == [rows[rule.name] for rule in chosen]


def test_the_page_on_privacy_says_what_the_table_says() -> None:
    rows = committed()
    own = [row for row in rows if row.has_beginning]
    told = re.findall(
        r"\(`([a-z ]+)`\) \| (\d+) \| (\d+) \|", (gitleaks.TABLE.parent / "privacy.md").read_text("utf-8")
    )
    assert told == [
        (dress, *(str(len(some) - len(gitleaks.missed(some, dress))) for some in (own, rows)))
        for dress in gitleaks.DRESSES
    ]


def test_the_committed_table_shows_the_reach() -> None:
    assert not any(line.startswith("MISSED") for line in gitleaks.report(committed()))


def row(name: str, **caught: int) -> gitleaks.Row:
    return gitleaks.Row(name, has_beginning=True, samples=20, caught=dict.fromkeys(gitleaks.DRESSES, 20) | caught)


@pytest.mark.parametrize(
    ("missed", "told"),
    [
        ([], 0),
        ([row("zendesk", prose=19)], 0),
        ([row(f"zendesk {number}", prose=0) for number in range(6)], 1),
        ([row("openai-api-key", prose=19)], 1),
        ([row("zendesk", assignment=19)], 0),
        ([row("zendesk", assignment=0), row("zoom", assignment=19)], 1),
    ],
    ids=["none", "one in prose", "too many in prose", "one of AI in prose", "one assigned", "too many assigned"],
)
def test_the_reach_is_judged(missed: list[gitleaks.Row], told: int) -> None:
    caught = [row(f"rule {number}") for number in range(100)]
    lines = gitleaks.report([*caught, *missed])
    assert sum(line.startswith("MISSED") for line in lines) == told


def test_part_of_a_secret_that_is_left_is_not_caught() -> None:
    rule = gitleaks.Rule("zendesk-key", "", ())
    secret = "".join(map(chr, range(ord("a"), ord("a") + 20)))
    texts = gitleaks.dressed(rule, secret, has_beginning=True)
    assert tuple(texts) == gitleaks.DRESSES
    for text in texts.values():
        assert leaks(text, secret, gitleaks.RUN), text
    assert leaks(f"[-]{secret[-8:]}", secret, gitleaks.RUN)
    assert not leaks(f"[-]{secret[-7:]}", secret, gitleaks.RUN)


# --- what is hit by mistake ------------------------------------------------------------------------------------------


def test_what_is_masked_beyond_the_examples_is_shown() -> None:
    text = "a = 1\npass" + "word = 'correct horse'; b\nend\n"
    found = false_hits.look(iter([("x: y.py", text), ("x: z.py", "a = 1\n")]))
    assert found.hits == {("x: y.py", "assignment"): 1}
    assert found.shown == {"x: y.py": ["pass" + "word = '«correct horse»'; b"]}
    assert "x: y.py: assignment 1 beyond the examples" in false_hits.report(found, Counter())
    assert len(false_hits.report(found, found.hits)) == 2  # the figure, and that this is too little source


def test_too_many_false_hits_are_too_many() -> None:
    hits = Counter({("x: y.py", "assignment"): 7})
    found = false_hits.Found(70_000_000, hits, {"x: y.py": []})
    assert not false_hits.report(found, Counter())[-1].startswith("MISSED")
    hits[("x: y.py", "assignment")] += 1
    assert false_hits.report(found, Counter())[-1].startswith("MISSED")


def test_every_example_is_of_a_file_that_is_looked_at() -> None:
    packages = {pin.partition("==")[0].replace("-", "_") for pin in false_hits.PACKAGES.read_text("utf-8").split()}
    files = [file for file, _ in false_hits.examples()]
    assert {file.partition(":")[0] for file in files} <= packages

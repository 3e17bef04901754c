"""What may leave is the strictest of all layers, whichever of them is the highest; patterns add up."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings.layers import load
from app.settings.model import Given, Layer, Origin, Settings
from app.settings.options import Options
from app.settings.strictest import LOOSEST_FIRST, strictest

FIELDS = {
    "enable": ("enable", "OPENCODE_HELICONE_ENABLE"),
    "export_mode": ("exportMode", "OPENCODE_HELICONE_EXPORT_MODE"),
    "redact_secrets": ("redactSecrets", "OPENCODE_HELICONE_REDACT_SECRETS"),
    "redact_patterns": ("redactPatterns", "OPENCODE_HELICONE_REDACT_PATTERNS"),
}
ORIGINS = {
    "command line": "command line",
    "environment": "environment {variable}",
    "folder .env": ".env {folder}/.env",
    ".env": ".env {folder}/own.env",
    "project": "opencode.json line 3",
    "user": "user.json",
    "recorded": "recorded",
    "config file": "config file {folder}/config.toml",
}
"""Every kind of layer, the highest first."""
LAYERS = tuple(ORIGINS)
PAIRS = tuple(permutations(LAYERS, 2))
CANNOT_LOOSEN = ("folder .env", "project", "user")
"""There `redactSecrets: false` does not count at all."""


def load_from(folder: Path, name: str, values: dict[str, object]) -> Settings:
    """The settings where these kinds of layers say this about one field."""
    option, variable = FIELDS[name]

    def text(layer: str) -> str:
        value = values[layer]
        return value if isinstance(value, str) else json.dumps(value)

    for layer, file in (("folder .env", ".env"), (".env", "own.env")):
        if layer in values:
            (folder / file).write_text(f"{variable}={text(layer)}\n", "utf-8")
    if "config file" in values:
        (folder / "config.toml").write_text(f"{option} = {json.dumps(values['config file'])}\n", "utf-8")
    options = (
        Options({option: values["project"]}, "opencode.json", "project", {option: 3}) if "project" in values else None,
        Options({option: values["user"]}, "user.json", "user") if "user" in values else None,
        Options({option: values["recorded"]}, "recorded", "recorded") if "recorded" in values else None,
    )
    return load(
        environ={variable: text("environment")} if "environment" in values else {},
        base=folder,
        command_line={name: values["command line"]} if "command line" in values else None,
        folder_dotenv=folder / ".env" if "folder .env" in values else None,
        dotenv=(folder / "own.env",) if ".env" in values else (),
        options=tuple(filter(None, options)),
        config_file=folder / "config.toml" if "config file" in values else None,
    )


def origin_of(layer: str, name: str, folder: Path) -> str:
    return ORIGINS[layer].format(variable=FIELDS[name][1], folder=folder)


@pytest.mark.parametrize(("strict_layer", "loose_layer"), PAIRS)
@pytest.mark.parametrize(
    ("name", "strict", "loose"),
    [
        ("enable", False, True),
        ("export_mode", "metadata_only", "full"),
        ("export_mode", "off", "metadata_only"),
        ("redact_secrets", True, False),
    ],
    ids=["enable", "metadata_only", "off", "redactSecrets"],
)
def test_the_strictest_layer_decides_wherever_it_stands(
    tmp_path: Path, name: str, strict: object, loose: object, strict_layer: str, loose_layer: str
) -> None:
    settings = load_from(tmp_path, name, {strict_layer: strict, loose_layer: loose})
    assert getattr(settings, name) == strict
    assert settings.origin(name) == origin_of(strict_layer, name, tmp_path)
    assert settings.held == ()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_patterns_of_all_layers_count_and_each_layer_is_named(tmp_path: Path, first: str, second: str) -> None:
    settings = load_from(tmp_path, "redact_patterns", {first: ["a", "b"], second: ["b", "c"]})
    assert set(settings.redact_patterns) == {"a", "b", "c"}
    named = set(settings.origin("redact_patterns").split("; "))
    assert named == {origin_of(layer, "redact_patterns", tmp_path) for layer in (first, second)}


@pytest.mark.parametrize("layer", LAYERS)
def test_what_only_one_layer_says_counts(tmp_path: Path, layer: str) -> None:
    settings = load_from(tmp_path, "redact_secrets", {layer: False})
    assert settings.redact_secrets is (layer in CANNOT_LOOSEN)
    assert [one.holds for one in settings.complaints] == [False] * (layer in CANNOT_LOOSEN)


def test_an_empty_list_of_patterns_takes_none_away(tmp_path: Path) -> None:
    settings = load_from(tmp_path, "redact_patterns", {"command line": [], "project": ["a"]})
    assert (settings.redact_patterns, settings.origin("redact_patterns")) == (("a",), "opencode.json line 3")


# --- for any layers

values = {
    "enable": st.booleans(),
    "export_mode": st.sampled_from(LOOSEST_FIRST["export_mode"]),
    "redact_secrets": st.booleans(),
    "redact_patterns": st.lists(st.sampled_from("abc"), max_size=2).map(tuple),
}
origins = st.builds(Origin, st.just("project"), st.sampled_from(("one", "two", "three")))
layers = st.lists(
    st.fixed_dictionaries({}, optional={name: st.builds(Given, value, origins) for name, value in values.items()}),
    max_size=5,
)


def is_as_strict(one: Layer, other: Layer) -> bool:
    """Whether one layer withholds all that the other one says is to be withheld."""
    ordered = all(
        name not in other or (name in one and order.index(one[name].value) >= order.index(other[name].value))
        for name, order in LOOSEST_FIRST.items()
    )
    return ordered and patterns(other) <= patterns(one)


def patterns(layer: Layer) -> set[object]:
    value = layer["redact_patterns"].value if "redact_patterns" in layer else ()
    assert isinstance(value, tuple)
    return set(value)


@given(layers)
def test_the_result_is_as_strict_as_each_layer_and_invents_nothing(some: list[Layer]) -> None:
    result = strictest(some)
    assert all(is_as_strict(result, layer) for layer in some)
    for name in LOOSEST_FIRST:
        assert (name in result) == any(name in layer for layer in some)
        assert name not in result or result[name] in [layer[name] for layer in some if name in layer]
    assert patterns(result) == set().union(*map(patterns, some))


@given(layers, layers.filter(lambda some: len(some) == 1), st.integers(0, 5))
def test_adding_a_layer_anywhere_never_loosens(some: list[Layer], more: list[Layer], place: int) -> None:
    assert is_as_strict(strictest([*some[:place], *more, *some[place:]]), strictest(some))


@given(layers)
def test_the_order_of_the_layers_decides_nothing_but_the_origin(some: list[Layer]) -> None:
    def said(result: Layer) -> dict[str, object]:
        return {name: set(patterns(result)) if name == "redact_patterns" else one.value for name, one in result.items()}

    assert said(strictest(some)) == said(strictest(some[::-1]))

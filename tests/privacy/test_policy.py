from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from app.privacy.policy import Policy, is_as_strict

PATTERNS = ("a", "b", "c")
policies = st.builds(
    Policy,
    mode=st.sampled_from(("full", "metadata_only", "off")),
    patterns=st.lists(st.sampled_from(PATTERNS), max_size=3).map(tuple),
    redact_secrets=st.booleans(),
    prefix=st.sampled_from(("/opencode", "/other")),
)
facts = st.one_of(st.just(""), st.builds(Policy.facts, policies, st.sampled_from(("", "somebody"))))


@settings(max_examples=50)
@given(facts)
def test_every_policy_is_as_strict_as_itself(one: str) -> None:
    assert is_as_strict(one, one)


@settings(max_examples=50)
@given(facts, facts, facts)
def test_as_strict_as_is_transitive(one: str, two: str, three: str) -> None:
    assert is_as_strict(one, three) or not (is_as_strict(one, two) and is_as_strict(two, three))


@settings(max_examples=50)
@given(policies, st.sampled_from(("d", "[a-c]", "a|b")))
def test_nothing_made_in_full_is_as_strict_as_one_more_pattern(one: Policy, pattern: str) -> None:
    more = Policy(one.mode, (*one.patterns, pattern), one.redact_secrets, one.prefix)
    assert is_as_strict(one.facts(""), more.facts("")) == (one.mode != "full")
    assert is_as_strict(more.facts(""), one.facts(""))


@settings(max_examples=50)
@given(policies, policies)
def test_a_stricter_mode_withholds_whatever_the_rest_says(one: Policy, other: Policy) -> None:
    order = ("full", "metadata_only", "off")
    if one.mode != other.mode:
        stricter = order.index(one.mode) > order.index(other.mode)
        assert is_as_strict(one.facts(""), other.facts("")) == stricter


@settings(max_examples=50)
@given(policies)
def test_prefix_and_user_id_withhold_nothing(one: Policy) -> None:
    other = Policy(one.mode, one.patterns, one.redact_secrets, "/elsewhere")
    assert is_as_strict(one.facts(""), other.facts("somebody"))
    assert is_as_strict(other.facts("somebody"), one.facts(""))


def test_secrets_left_in_are_not_posted_where_they_are_to_be_redacted() -> None:
    kept = Policy("full", (), redact_secrets=False, prefix="/opencode").facts("")
    masked = Policy("full", (), redact_secrets=True, prefix="/opencode").facts("")
    assert not is_as_strict(kept, masked)
    assert is_as_strict(masked, kept)


def test_an_unknown_policy_is_as_strict_as_the_default_and_no_stricter() -> None:
    assert is_as_strict("", Policy("full", (), redact_secrets=True, prefix="/opencode").facts(""))
    assert not is_as_strict("", Policy("full", ("a",), redact_secrets=True, prefix="/opencode").facts(""))
    assert not is_as_strict("", Policy("metadata_only", (), redact_secrets=True, prefix="/opencode").facts(""))

from __future__ import annotations

import base64
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.privacy.metadata_only import withhold_session, withhold_turn
from app.privacy.redact import (
    REDACTED,
    HitCounts,
    PatternError,
    Redaction,
    finished,
    identity_hits,
    redact_session,
    redact_turn,
)
from app.transcript.model import (
    Assistant,
    Failure,
    File,
    Json,
    Other,
    Reasoning,
    Session,
    Text,
    Tool,
    Transcript,
    Turn,
    User,
)
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.dress import in_json, in_lines, in_url
from tests.support.fake_secrets import KEYS, SAMPLES, noise

EMAIL = r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}"


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("sk-[a-zA-Z0-9]+", "a sk-abc b", f"a {REDACTED} b"),
        (r"password\s*[:=]\s*\S+", "Password =  x y", f"{REDACTED} y"),
        (EMAIL, "mail Bob@Example.com!", f"mail {REDACTED}!"),
        ("grüße", "GRÜSSE Grüße", f"GRÜSSE {REDACTED}"),
        ("日本.", "日本語 日本人", f"{REDACTED} {REDACTED}"),
        ("x", "xaxx", f"{REDACTED}a{REDACTED}"),
        (r"a.c", "a\nc a\u2028c", f"a\nc {REDACTED}"),
        (r"\x00+", "a\x00\x00b", f"a{REDACTED}b"),
    ],
    ids=["key", "password", "email", "umlaut", "cjk", "neighbours", "dot", "null"],
)
def test_what_matches_a_pattern_goes(pattern: str, text: str, expected: str) -> None:
    assert Redaction.compile([pattern]).text(text) == expected


@pytest.mark.parametrize("wear", [in_lines, in_json, in_url, lambda text: json.dumps(in_json(text))])
def test_a_pattern_sees_through_escapes(wear: Any) -> None:
    text = Redaction.compile([EMAIL]).text(wear("bob@example.com"))
    assert REDACTED in text
    assert "bob" not in text


@pytest.mark.parametrize(
    ("pattern", "place", "reason"),
    [
        ("a(b", 1, "missing )"),
        ("ab)", 2, "unexpected )"),
        ("ab[c", 2, "missing ]"),
        ("[[a](", 4, "missing )"),
        ("x{2000}", 1, "invalid repetition size"),
        ("(?=x)y", 0, "invalid perl operator"),
        (r"(a)\1", 3, "invalid escape sequence"),
        ("a\\", 1, "trailing"),
        ("*", 0, "no argument for repetition operator"),
    ],
)
def test_a_pattern_that_does_not_compile_is_named_with_its_place(
    pattern: str, place: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PatternError) as caught:
        Redaction.compile(["fine", pattern])
    message = str(caught.value)
    assert message.startswith(f"redaction pattern 2, {pattern}: at character {place}, RE2 says: {reason}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pattern", ["", "a*", "x|", r"\b", "^", "$", "(?s).*", "(a?)(b?)"])
def test_a_pattern_that_matches_no_letter_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="matches the empty text"):
        Redaction.compile([pattern])


def test_half_a_character_is_no_pattern() -> None:
    with pytest.raises(PatternError, match="half a character"):
        Redaction.compile(["a\ud800"])


def test_rules_come_before_patterns_and_known_values_before_rules() -> None:
    key = KEYS[0].secret
    hits: Counter[str] = Counter()
    text = Redaction.compile(["sk-[a-z0-9-]+", "hello"], known_values=["open-sesame"]).text(
        f"{key} open-sesame hello", hits
    )
    assert text == f"{REDACTED} {REDACTED} {REDACTED}"
    assert hits == {"known": 1, "anthropic": 1, "pattern 2": 1}


def test_what_a_pattern_finds_beyond_a_rule_goes_as_well() -> None:
    redaction = Redaction.compile([r"password\s*[:=]\s*\S+"])
    assert redaction.text("a password=hunter2 b") == f"a {REDACTED} b"


def test_a_redacted_text_stays_as_it_is() -> None:
    redaction = Redaction.compile([EMAIL])
    for sample in SAMPLES:
        once = redaction.text(in_lines(sample.text))
        assert redaction.text(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "a\u2028b\u2029c",
        "éé",
        "👨\u200d👩",
        "\x1b",
        "\\",
        "%",
        "\\u12",
        "a\r\nb",
        "\x7f\x80\xff",
        "\\ud83d",
    ],
)
def test_an_innocent_text_stays_as_it_is(text: str) -> None:
    assert Redaction.compile([EMAIL], known_values=["0123456789"]).text(text) == text


def test_half_a_character_becomes_a_replacement_character() -> None:
    redaction = Redaction.compile(["b+"])
    assert redaction.text("a\ud83dbb\udc00") == f"a\ufffd{REDACTED}\ufffd"
    assert redaction.text("\ud83d\ude00") == "😀"


def test_a_blob_is_described_before_anything_else() -> None:
    text = Redaction.compile(["QUJD"]).text("data:text/plain;base64,QUJDQUJD QUJD")
    assert text == f"[text/plain, 6 bytes] {REDACTED}"


def test_keys_and_values_of_json_are_redacted_at_every_depth() -> None:
    redaction = Redaction.compile(["canary"])
    value: Json = {"canary": [1, True, None, {"a canary": "two canary"}], "b": 2.5}
    assert redaction.json(value) == {REDACTED: [1, True, None, {f"a {REDACTED}": f"two {REDACTED}"}], "b": 2.5}


def test_two_keys_that_look_alike_once_redacted_are_both_kept() -> None:
    assert Redaction.compile(["canary[0-9]"]).json({"canary1": 1, "canary2": 2}) == {REDACTED: 1, f"{REDACTED} 1": 2}


@pytest.mark.parametrize(
    "key", ["password", "apiKey", "API_KEY", "x-api-key", "dbPassword", "client_secret", "accessToken", "Authorization"]
)
def test_a_value_under_a_key_named_as_a_secret_is_replaced_whole(key: str) -> None:
    hits: Counter[str] = Counter()
    redaction = Redaction.compile([])
    assert redaction.json({"in": {key: "x y"}, "list": [{key: [1, "a"]}]}, hits) == {
        "in": {key: REDACTED},
        "list": [{key: REDACTED}],
    }
    assert hits == {"named value": 2}
    assert Redaction.compile([], secrets=False).json({key: "x y"}) == {key: "x y"}


@pytest.mark.parametrize("key", ["tokens", "max_tokens", "tokenizer", "passwords_file", "key", "cookies", "secretary"])
def test_a_value_under_another_key_stays(key: str) -> None:
    assert Redaction.compile([]).json({key: "x y"}) == {key: "x y"}


@pytest.mark.parametrize("value", [None, True, False, "", [], {}])
def test_nothing_under_a_key_named_as_a_secret_stays_nothing(value: Json) -> None:
    assert Redaction.compile([]).json({"password": value}) == {"password": value}


def test_a_number_is_redacted_by_its_digits() -> None:
    redaction = Redaction.compile(["^4111"], known_values=["98765432"])
    assert redaction.json([4111222, 98765432, 12, 1.5, -3]) == [f"{REDACTED}222", REDACTED, 12, 1.5, -3]


def test_json_nested_without_end_is_cut() -> None:
    value: Json = "deep"
    for _ in range(5000):
        value = [value]
    text = json.dumps(Redaction.compile([]).json(value))
    assert REDACTED in text
    assert "deep" not in text


TEXTS = {
    Session: {"version", "title", "directory"},
    Turn: set(),
    Text: {"text"},
    Reasoning: {"text"},
    File: {"mime", "name"},
    Tool: {"input", "output", "error", "title"},
    Other: set(),
    User: {"agent", "system"},
    Assistant: {"agent", "mode", "finish"},
    Failure: {"name", "message"},
}
"""What is redacted; every other string is identity, or one of a fixed set of words."""
FIXED = {(Tool, "status"), (Other, "type"), (Turn, "digest")}
IDENTITY = {
    (Session, "id"),
    (Session, "parent_id"),
    (Turn, "id"),
    (Tool, "id"),
    (Tool, "call_id"),
    (Tool, "name"),
    (Text, "id"),
    (Reasoning, "id"),
    (File, "id"),
    (Other, "id"),
    (User, "id"),
    (Assistant, "id"),
    (Assistant, "parent_id"),
    (Assistant, "provider_id"),
    (Assistant, "model_id"),
}


def turn() -> Turn:
    """Every kind of part, a subagent, and a word that no one else says in every string."""
    said = "canary"
    session = Session(said, said, said, 1, 2, 3, said, said)
    user = User(
        said, 0, 1, said, said, (Text(said, said, synthetic=False, start_ms=1, end_ms=2), File(said, said, said, 7))
    )
    inner = Turn(session, said, (user,), final=True, last_event_ms=9, digest=said)
    tool = Tool(
        id=said,
        call_id=said,
        name=said,
        status=said,
        input={said: [said, {said: said}]},
        output=said,
        error=said,
        title=said,
        exit_code=3,
        truncated=True,
        start_ms=4,
        end_ms=5,
        child=Transcript(session, (inner,)),
    )
    parts = (tool, Reasoning(said, said, 1, 2), Other(said, said))
    assistant = Assistant(
        id=said,
        index=1,
        parent_id=said,
        created_ms=1,
        completed_ms=2,
        agent=said,
        mode=said,
        provider_id=said,
        model_id=said,
        cost_usd=0.5,
        tokens=None,
        finish=said,
        summary=False,
        failure=Failure(said, said, 400),
        parts=parts,
    )
    return Turn(session, said, (user, assistant), final=True, last_event_ms=9, digest=said)


def strings(value: Any) -> Iterator[tuple[type, str, Any]]:
    """Every string of a transcript, with the class and the field that it stands in."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        for item in inner if isinstance(inner, tuple) else (inner,):
            if dataclasses.is_dataclass(item):
                yield from strings(item)
            elif isinstance(item, str | dict):
                yield type(value), field.name, item


def test_every_string_of_a_turn_is_redacted_or_named_as_one_that_stays() -> None:
    hits: Counter[str] = Counter()
    kept: set[tuple[type, str]] = set()
    redacted: set[tuple[type, str]] = set()
    for kind, name, value in strings(redact_turn(turn(), Redaction.compile(["canary"]), hits)):
        (kept if "canary" in json.dumps(value) else redacted).add((kind, name))
    assert redacted == {(kind, name) for kind, names in TEXTS.items() for name in names}
    assert kept == IDENTITY | FIXED
    assert hits["pattern 1"] > 20


def test_what_is_no_text_is_the_same_after_redaction() -> None:
    assert redact_turn(turn(), Redaction.compile([])) == turn()
    assert redact_session(turn().session, Redaction.compile([])) == turn().session


def test_a_pattern_that_matches_identity_is_reported() -> None:
    assert identity_hits(turn(), Redaction.compile(["nothing", "canary"])) == {"pattern 2": 1}
    told = dataclasses.replace(turn(), id="msg_canary and canary")
    assert identity_hits(told, Redaction.compile(["canary"])) == {"pattern 1": 3}
    assert identity_hits(turn(), Redaction.compile(["nothing"])) == {}


def test_metadata_only_keeps_no_text() -> None:
    withheld = withhold_turn(turn())
    kept = {(kind, name) for kind, name, value in strings(withheld) if value is not None}
    names = {(User, "agent"), (Assistant, "agent"), (Assistant, "mode"), (Assistant, "finish"), (Failure, "name")}
    assert kept == IDENTITY | FIXED | names
    assert withhold_session(turn().session) == withheld.session


def test_metadata_only_keeps_times_counts_and_kinds() -> None:
    told, withheld = turn(), withhold_turn(turn())
    assert [type(part) for message in withheld.messages for part in message.parts] == [
        type(part) for message in told.messages for part in message.parts
    ]
    tool = withheld.messages[1].parts[0]
    assert isinstance(tool, Tool)
    assert (tool.exit_code, tool.truncated, tool.start_ms, tool.end_ms) == (3, True, 4, 5)
    assert tool.child is not None
    assert len(tool.child.turns) == 1
    failure = withheld.messages[1].failure if isinstance(withheld.messages[1], Assistant) else None
    assert failure == Failure("canary", None, 400)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("build", "build"),
        ("mcp_server.read-file", "mcp_server.read-file"),
        ("team/reviewer:v2", "team/reviewer:v2"),
        ("my secret plan", "other"),
        ("bob@example.com", "other"),
        ("/home/bob/plan", "other"),
        ("x" * 65, "other"),
        ("grün", "other"),
        ("build\n", "other"),
        ("", "other"),
    ],
)
def test_metadata_only_keeps_a_name_only_if_it_is_a_plain_one(name: str, shown: str) -> None:
    told = turn()
    user = dataclasses.replace(told.messages[0], agent=name)
    assert isinstance(told.messages[1], Assistant)
    tool = told.messages[1].parts[0]
    assert isinstance(tool, Tool)
    tool = dataclasses.replace(tool, name=name, call_id=name)
    answer = dataclasses.replace(
        told.messages[1],
        agent=name,
        mode=name,
        finish=name,
        failure=Failure(name, None, None),
        parts=(tool, Other("prt_1", name)),
    )
    withheld = withhold_turn(dataclasses.replace(told, messages=(user, answer)))
    shown_names = {value for _, field, value in strings(withheld) if field in {"agent", "mode", "finish", "type"}}
    assert shown_names - {"canary"} == {shown}
    named = {value for kind, field, value in strings(withheld) if (kind, field) in {(Tool, "name"), (Failure, "name")}}
    assert named == {shown}


def test_the_secrets_of_a_recorded_session_go() -> None:
    transcript = parse(recorded.export("j_unicode_secrets"))
    redaction = Redaction.compile([EMAIL])
    shown = json.dumps(
        [dataclasses.asdict(redact_turn(turn, redaction)) for turn in transcript.turns], ensure_ascii=False
    )
    for secret in (*recorded.SECRETS.values(), *recorded.EMAILS):
        assert secret not in shown
    assert "Grüße" in shown


@pytest.mark.parametrize("name", ["пароль", "密码", "パスワード"])
def test_a_name_beyond_ascii_is_known_in_json_that_escapes_it(name: str) -> None:
    secret = "sword" + "fish-7"
    assert secret not in Redaction.compile([]).text(json.dumps({name: secret}))


@pytest.mark.parametrize("escape", [r"\n", r"\t", r"\\n", r"\r\n"])
@pytest.mark.parametrize("head", ["gh" + "p_", "AK" + "IA", "pw=", "--token ", "pass: "])
def test_a_secret_just_behind_an_escape_is_found(escape: str, head: str) -> None:
    body = noise(head, "ABCDEFGHIJKLMNOP234567", 16 if head == "AK" + "IA" else 36)
    assert body not in Redaction.compile([]).text(f'"done:{escape}{head}{body}"')


@pytest.mark.parametrize(
    "colour", [r"\033[33m", r"\e[1;33m", r"\x1b[33m", r"\u001b[0m", r"\\033[33m", r"\\e[33m", r"\012"]
)
@pytest.mark.parametrize("head", ["gh" + "p_", "AK" + "IA", "pw=", "xk" + "eysib-"])
def test_a_secret_just_behind_a_colour_in_a_script_is_found(colour: str, head: str) -> None:
    body = noise(head, "ABCDEFGHIJKLMNOP234567", 16 if head == "AK" + "IA" else 64)
    assert body not in Redaction.compile([]).text(f'echo "{colour}{head}{body}{colour}"')


@pytest.mark.parametrize("slash", ["\\", "\\\\"])
@pytest.mark.parametrize("at", [0, 1, 2, 20])
def test_a_key_with_octal_escapes_is_found(slash: str, at: int) -> None:
    key = "gh" + "p_" + noise("octal", "abcdefghijklmnop234567", 36)
    text = f'printf "{key[:at]}{slash}{ord(key[at]):03o}{key[at + 1 :]}"'
    assert key[at + 1 : at + 9] not in Redaction.compile([]).text(text)


@pytest.mark.parametrize("seam", ["\\u0068", "\x1b[1mh", "h\x1b[0m"])
@pytest.mark.parametrize("shift", ["", "x", "xy"])
def test_an_escape_in_base64_hides_no_beginning_of_a_key(seam: str, shift: str) -> None:
    packed = base64.b64encode(f"{shift} it is g{seam}p_{'0aB1' * 9} there".encode()).decode()
    assert Redaction.compile(()).text(f"this {packed} is").replace("=", "") == "this [REDACTED] is"


def test_what_was_done_ahead_is_taken_with_its_hits() -> None:
    redaction = Redaction.compile([EMAIL], known_values=["open-sesame"])
    word = noise("some", "abcdefgh23456789", 20)
    value = f"open-sesame, bob@example.com, \\u0070assword: {word}"
    hits, of_it = HitCounts(), HitCounts()
    shown = finished(redaction.steps(value, of_it))
    assert shown == redaction.text(value, hits)
    assert len(of_it) == 3
    ready, again = replace(redaction, done={value: (shown, of_it)}), HitCounts()
    assert (ready.text(value, again), ready.text(value, again)) == (shown, shown)
    assert again == hits + hits
    assert again.known == hits.known
    # It is taken, and not made anew.
    assert replace(redaction, done={value: ("ready", of_it)}).text(value) == "ready"


def test_a_text_of_which_nothing_goes_is_not_made_once_more() -> None:
    value = "nothing to see, however long it is " * 1_000
    assert Redaction.compile([EMAIL]).text(value) is value


def test_what_other_rules_left_as_it_is_is_looked_at_anew() -> None:
    redaction = Redaction.compile([], secrets=False)
    assert redaction.text("a word") == redaction.text("a word") == "a word"
    assert replace(redaction, patterns=Redaction.compile(["word"]).patterns).text("a word") == f"a {REDACTED}"


def test_a_text_that_comes_again_is_counted_again() -> None:
    redaction, hits = Redaction.compile(["word"]), HitCounts()
    assert [redaction.text(text, hits) for text in ("a word", "a", "a word", "a")] == [f"a {REDACTED}", "a"] * 2
    assert hits == {"pattern 1": 2}


def test_json_of_which_nothing_goes_is_not_made_once_more() -> None:
    value: Json = {"a": ["b", 1, {"c": None}], "d": {}}
    redaction = Redaction.compile(["x"])
    assert redaction.json(value) is value
    shown = redaction.json({"same": value, "other": ["x"]})
    assert shown == {"same": value, "other": [REDACTED]}

"""Dialogue of `setup`: asks what is not given, tries it out, and writes it down last.

where ─▶ key ─▶ a tiny log, there and back ─▶ one session as it would leave ─▶ mode ─▶ .env, plugin ─▶ what next
"""

from __future__ import annotations

import json
import sqlite3
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import typer
from pydantic import SecretStr, ValidationError

from app import __version__
from app.cli import render
from app.cli.layout import day
from app.cli.options import PROBLEM, PROGRAM, STOPPED, USAGE, complain, print_lines
from app.cli.plugin import install_here
from app.database.schema import SchemaError
from app.operations.preview import Previewed, preview
from app.operations.send_test import send
from app.operations.verdict import judged
from app.privacy.policy import Mode
from app.receiver import background
from app.receiver.texts import texts
from app.runtime import clock
from app.runtime.terminal import visible
from app.runtime.url import is_unprotected
from app.settings import user_env
from app.settings.lookup import Sources, unattended
from app.settings.model import Settings, SettingsError, checked
from app.settings.names import NAMES
from app.settings.options import words_of
from app.settings.strictest import LOOSEST_FIRST
from app.sources.opencode.access import AbsentError, StoreError
from app.sources.opencode.store import Store, store_file

LOOK_S = 30.0
"""So long the tiny log is looked for."""
CLOUD = "https://api.worker.helicone.ai"
KEY_CHARS_MAX = 10_000
TEXT_CHARS_MAX = 160
TEXTS_MAX = 6
MODES: tuple[str, ...] = get_args(Mode)
_MEANINGS = {
    "full": "everything, secrets masked",
    "metadata_only": "numbers, models, tools, times; no text",
    "off": "nothing: turns are counted and never sent",
}
_NOT_TRUSTED = "certificate is not trusted"
_HOW = {
    "where": "say --cloud, --endpoint URL or --receiver",
    "key": "say --key-file FILE or --key-stdin",
    "http": "say --allow-http, or give an https:// address",
}


@dataclass(frozen=True, slots=True)
class Given:
    """What stands on the command line."""

    cloud: bool
    endpoint: str | None
    receiver: bool
    allow_http: bool
    ca_file: Path | None
    key_file: Path | None
    key_stdin: bool
    mode: str | None
    tests: bool


@dataclass(slots=True)
class Choice:
    """What to write, by variable; None takes the line away."""

    values: dict[str, str | None] = field(default_factory=dict)
    page: str = ""
    """Of the receiver that was started for it."""
    port_option: str = ""

    def set(self, name: str, value: str | None) -> None:
        self.values[NAMES[name].variable] = value


def run(given: Given, environ: Mapping[str, str], receiver_store: Path) -> None:
    """Ends the command where something is missing or somebody says no; nothing is written then."""
    if sum((given.cloud, given.endpoint is not None, given.receiver)) > 1:
        raise typer.BadParameter("--cloud, --endpoint and --receiver exclude each other")
    if given.key_file is not None and given.key_stdin:
        raise typer.BadParameter("--key-file and --key-stdin exclude each other")
    if given.mode is not None and given.mode not in MODES:
        raise typer.BadParameter(f"--mode is one of {', '.join(MODES)}")
    try:
        _run(given, unattended(environ), receiver_store)
    except typer.Abort as error:  # Ctrl-C or the end of input at a question
        complain("nothing was written")
        raise typer.Exit(STOPPED if isinstance(error.__context__, KeyboardInterrupt) else PROBLEM) from None


def _run(given: Given, sources: Sources, receiver_store: Path) -> None:
    present = sources.load()
    choice = Choice()
    if _asks():
        print_lines([f"{PROGRAM} {__version__}: set-up. It changes nothing before its end; Ctrl-C leaves it.", ""])
    with ExitStack() as undo:
        if _choose_where(given, present, choice, receiver_store):
            _start_receiver(choice, sources.environ, receiver_store, undo)
        else:
            _choose_key(given, present, choice)
        settings = _tried(given, sources, choice)
        _choose_mode(given, sources, settings, choice)
        settings = _candidate(sources, choice).load()  # what is wrong with it is told before it is written
        env = sources.own / ".env"
        user_env.write(env, choice.values)
        undo.pop_all()
    print_lines(["", f"wrote {env} (only you can read it)"])
    install_here()
    overruled = list(_overruled(sources, settings))
    print_lines(_next(sources, choice, overruled))
    for line in overruled:
        complain(line)


def _asks() -> bool:
    return sys.stdin.isatty()


def _end(why: str, code: int = USAGE) -> NoReturn:
    complain(why)
    raise typer.Exit(code)


def _prompt(question: str, check: Callable[[str], str], *, default: str | None = None, hidden: bool = False) -> str:
    """Asked again until `check` takes it; that raises ValueError with the reason."""
    while True:
        text = typer.prompt(
            visible(question), default=default, hide_input=hidden, show_default=bool(default), err=True
        ).strip()
        try:
            return check(text)
        except ValueError as error:
            complain(str(error))


def _field(name: str) -> Callable[[str], str]:
    """Takes what this setting can be."""

    def check(text: str) -> str:
        value: object = SecretStr(text) if name == "api_key" else text
        try:
            held = checked(name, value)
        except ValidationError as error:
            raise ValueError(words_of(error)) from None
        return held.get_secret_value() if isinstance(held, SecretStr) else str(held)

    return check


def _given(name: str, option: str, text: str) -> str:
    try:
        return _field(name)(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


# --- where


def _choose_where(given: Given, present: Settings, choice: Choice, receiver_store: Path) -> bool:
    """Whether it is to be the receiver; otherwise the address is chosen."""
    where = _where(given, present, receiver_store)
    if where == "receiver":
        return True
    url = CLOUD if where == "cloud" else _address(given, present)
    choice.set("endpoint", url)
    if is_unprotected(url):
        _agree_to_http(url, is_allowed=given.allow_http or present.allow_http)
        choice.set("allow_http", "true")
    if given.ca_file is not None:
        choice.set("ca_file", _given("ca_file", "--ca-file", str(given.ca_file.absolute())))
    return False


def _where(given: Given, present: Settings, receiver_store: Path) -> str:
    said = {"receiver": given.receiver, "own": given.endpoint is not None, "cloud": given.cloud}
    chosen = next((where for where, is_said in said.items() if is_said), None)
    is_set = "endpoint" in present.origins
    if chosen is not None:
        return chosen
    if not _asks():
        return "own" if is_set else _end(_HOW["where"])
    print_lines(
        [
            "Where is your Helicone?",
            "  1  Helicone's cloud",
            "  2  one of your own: you have its address",
            "  3  none yet: a receiver on this machine shows",
            "     sessions as Helicone would",
        ]
    )
    default = "1"
    if is_set and present.endpoint != CLOUD:
        default = "3" if receiver_store.exists() and present.endpoint in background.urls() else "2"
    return _prompt("1, 2 or 3", _one_of("cloud", "own", "receiver"), default=default)


def _address(given: Given, present: Settings) -> str:
    if given.endpoint is not None:
        return _given("endpoint", "--endpoint", given.endpoint)
    if not _asks():
        return present.endpoint
    own = present.endpoint if "endpoint" in present.origins and present.endpoint != CLOUD else None
    return _prompt("Its address, such as https://helicone.example.com", _field("endpoint"), default=own)


def _agree_to_http(url: str, *, is_allowed: bool) -> None:
    if is_allowed:
        return
    told = f"{url}: http:// shows the key and your sessions to everybody on the way"
    if not _asks():
        _end(f"{told}: {_HOW['http']}")
    print_lines([told])
    if not typer.confirm("Send there all the same?", err=True):
        raise typer.Abort


def _start_receiver(choice: Choice, environ: Mapping[str, str], store: Path, undo: ExitStack) -> None:
    with render.spinner("starting the receiver"):
        running = background.ensure(store, environ)
    if running.is_new:
        undo.callback(background.stop, store)
    print_lines([f"the receiver runs: {running.url}"])
    choice.page = running.page
    choice.port_option = "" if running.port == background.PORT else f" --port {running.port}"
    choice.set("endpoint", running.url)
    choice.set("api_key", running.key)
    choice.set("api_key_file", None)


def _one_of(*names: str) -> Callable[[str], str]:
    """Takes a number of the list, or what stands behind it; gives that."""
    numbers = [str(number) for number in range(1, len(names) + 1)]

    def check(text: str) -> str:
        if text.lower() in names:
            return text.lower()
        if text not in numbers:
            raise ValueError(f"type {', '.join(numbers[:-1])} or {numbers[-1]}")
        return names[int(text) - 1]

    return check


# --- the key


def _choose_key(given: Given, present: Settings, choice: Choice) -> None:
    if given.key_file is not None:
        path = given.key_file.expanduser().absolute()
        try:
            text = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            _end(f"--key-file: {path}: {getattr(error, 'strerror', None) or 'it is no text'}")
        _given("api_key", "--key-file", text)
        choice.set("api_key_file", str(path))
        choice.set("api_key", None)
        return
    # A key of the receiver on this machine opens nothing elsewhere.
    is_of_receiver = present.endpoint in background.urls() and present.endpoint != choice.values["HELICONE_ENDPOINT"]
    may_keep = present.api_key is not None and not is_of_receiver
    if given.key_stdin:
        text = _given("api_key", "--key-stdin", sys.stdin.read(KEY_CHARS_MAX).strip())
    elif may_keep and not _asks():
        return
    elif not _asks():
        _end(_HOW["key"])
    else:
        kept = f"; Enter keeps that of {present.origin('api_key')}" if may_keep else ""
        print_lines(["", "Your API key: Helicone > Settings > API Keys, one that may write."])
        check = _field("api_key")
        text = _prompt(
            f"Key (not shown{kept})",
            lambda typed: check(typed) if typed or not kept else "",
            default="" if kept else None,
            hidden=True,
        )
        if not text:
            return
    choice.set("api_key", text)
    choice.set("api_key_file", None)


# --- there and back


def _candidate(sources: Sources, choice: Choice) -> Sources:
    """The settings as they will be; what is chosen counts above the environment, which is told of at the end."""
    environ = {name: text for name, text in sources.environ.items() if choice.values.get(name, "") is not None}
    return replace(sources, environ=environ | {name: text for name, text in choice.values.items() if text is not None})


def _tried(given: Given, sources: Sources, choice: Choice) -> Settings:
    while True:
        try:
            settings = _candidate(sources, choice).load()
        except SettingsError as error:
            _end(str(error))
        if not given.tests:
            return settings
        print_lines(["", f"A tiny log goes to {settings.endpoint}, and is looked for:"])
        problems = []
        for finding in send(settings, clock.now_ms(), LOOK_S):
            print_lines([f"  {'' if finding.level == 'ok' else f'{finding.level}: '}{finding.found}"])
            problems += [finding] if finding.level == "problem" else []
        if not problems:
            return settings
        if any(_NOT_TRUSTED in one.found for one in problems):
            if not _asks():
                _end("nothing was written; give its certificate with --ca-file FILE", PROBLEM)
            print_lines(["Which file (PEM) holds its certificate, or that of who signed it?"])
            choice.set("ca_file", _prompt("File", _readable))
        elif not _asks():
            _end("nothing was written; mend that, or say --no-test", PROBLEM)
        elif typer.confirm("Write the configuration all the same?", default=False, err=True):
            return settings
        else:
            raise typer.Abort


def _readable(text: str) -> str:
    path = Path(text).expanduser().absolute()
    try:
        path.read_bytes()
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"{path}: it holds no certificate (PEM)") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return str(path)


# --- what may leave


def _choose_mode(given: Given, sources: Sources, settings: Settings, choice: Choice) -> None:
    mode = given.mode
    own = (settings.common or settings).export_mode  # a destination that takes less makes that by itself
    if mode is None and _asks():
        print_lines(["", *_shown(sources, choice), "", "What may leave this machine?"])
        print_lines(f"  {number}  {name:<14} {_MEANINGS[name]}" for number, name in enumerate(MODES, 1))
        default = str(MODES.index(own) + 1)
        mode = _prompt("1, 2 or 3", _one_of(*MODES), default=default)
    choice.set("export_mode", mode or own)


def _shown(sources: Sources, choice: Choice) -> Iterator[str]:
    """The latest session, as it would leave."""
    try:
        store = Store(store_file(sources.environ))
        roots = store.roots()
        if not roots:
            raise AbsentError("there is none")
        latest = max(roots, key=lambda head: head.updated_ms)
        with render.spinner("looking at your latest session"):
            made = next(preview(store.files(latest.id), _candidate(sources, choice)))
    except (StoreError, OSError):
        yield "OpenCode has no session to show here yet. Later: opencode-helicone preview SESSION"
        return
    if not isinstance(made, Previewed):
        yield f"Your latest session would not leave: {made.reason}"
        return
    yield f"Your latest session, {latest.id}, would leave like this:"
    yield from (f"  {line}" for line in _excerpt(made))
    masked = sum(made.hits.values())
    rules = ", ".join(f"{name} {number}" for name, number in sorted(made.hits.items()))
    yield f"  {len(made.records)} logs, {masked} secrets masked{f' ({rules})' if rules else ''}"
    yield f"  all of it: opencode-helicone preview {latest.id}"


def _excerpt(made: Previewed) -> Iterator[str]:
    """First those texts in which something was masked."""
    found: list[tuple[str, str]] = []
    for record in made.records:
        body: dict[str, Any] = json.loads(record.body)
        with suppress(LookupError, AttributeError):
            found += texts(body["providerRequest"]["json"], body["providerResponse"]["json"])
    chosen = sorted(dict.fromkeys(found), key=lambda one: "[REDACTED]" not in one[1])[:TEXTS_MAX]
    for who, text in chosen:
        at = max(0, text.find("[REDACTED]") - TEXT_CHARS_MAX // 2)
        short = " ".join(text[at : at + TEXT_CHARS_MAX].split())
        yield f"{who}: {'…' if at else ''}{short}{'…' if at + TEXT_CHARS_MAX < len(text) else ''}"


# --- the end


def _overruled(sources: Sources, wanted: Settings) -> Iterator[str]:
    """The shell's variables count above the file; what may leave is the strictest of all."""
    try:
        found = sources.load()
    except SettingsError as error:
        yield f"these settings cannot be used together: {error}"
        return
    for name in ("endpoint", "api_key", "export_mode"):
        if getattr(found, name) != getattr(wanted, name):
            stricter = "is stricter, and counts" if name in LOOSEST_FIRST else "counts instead of what was written"
            todo = found.how_to_undo(name)
            yield f"{NAMES[name].option} from {found.origin(name)} {stricter}{f': {todo}' if todo else ''}"


def _waiting(sources: Sources) -> Iterator[str]:
    """What waits for another address or key than those that are set up now, with what moves it."""
    with suppress(SettingsError, OSError, sqlite3.Error, SchemaError):  # said already, or by whoever opens it next
        found = judged(sources.load(), clock.now_ms())
        for one in found.elsewhere:
            if one.todo:
                yield ""
                yield f"Not yet sent: {one.text}."
                yield f"  {one.todo}    moves {'it' if one.jobs == 1 else 'them'} to what you have set up"


def _next(sources: Sources, choice: Choice, overruled: Sequence[str]) -> Iterator[str]:
    yield ""
    if overruled:
        yield "Written, but it does not count yet; the last lines say why. What comes after that:"
    else:
        yield "Set up. What comes next:"
    yield "  start OpenCode in a project and ask it something;"
    yield "  quit one that runs now first: plugins load at its start"
    yield "  opencode-helicone status    says whether it arrived"
    if choice.page:
        yield f"  see it: {choice.page}"
        yield "  (the receiver ends when this machine does; to start it again:"
        yield f"  opencode-helicone receiver{choice.port_option})"
    yield from _waiting(sources)
    yield from _history(sources.environ)


def _history(environ: Mapping[str, str]) -> Iterator[str]:
    try:
        roots = Store(store_file(environ)).roots()
    except StoreError:
        roots = []
    if roots:
        first = day(min(head.created_ms for head in roots))
        sessions = "1 session" if len(roots) == 1 else f"{len(roots):,} sessions"
        yield f"History: OpenCode has {sessions}, the first of {first}. One is sent when you"
        yield "  go on with it; opencode-helicone backfill --dry-run says what all would be"

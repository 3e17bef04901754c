"""Capture of a folder: makes a policy and compiled rules of its settings, or says why nothing is captured."""

from __future__ import annotations

from itertools import chain

from app.privacy.machine_secrets import of_configuration
from app.privacy.policy import Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.settings.model import Settings, SettingsError


def capture(settings: Settings, known: tuple[str, ...]) -> Capture:
    """Nothing may be exported with a pattern left out, or with something that may have been meant to withhold more.

    `known`: the values that this machine is known to hold; see `Keyring`.

    Raises redact.PatternError for a pattern that does not compile, SettingsError where the folder is held.
    """
    if settings.held:
        raise SettingsError(settings.held)
    return Capture(
        policy=Policy(
            mode=settings.export_mode,
            patterns=settings.redact_patterns,
            redact_secrets=settings.redact_secrets,
            prefix=settings.session_path_prefix,
        ),
        redaction=Redaction.compile(
            settings.redact_patterns, secrets=settings.redact_secrets, known_values=(*known, *own_secrets(settings))
        ),
        user_id=settings.user_id or "",
        kind=settings.kind,
    )


def own_secrets(settings: Settings) -> tuple[str, ...]:
    """What the program itself is let in with, at any destination."""
    key = (settings.api_key.get_secret_value(),) if settings.api_key else ()
    headers = [one.headers for one in settings.destinations.values()]
    return (*key, *chain.from_iterable(of_configuration({"headers": one}) for one in headers if one))


def why_nothing(settings: Settings) -> str:
    """Why nothing of a folder with these settings may leave, for a person; '' where something may."""
    if not settings.enable:
        return f"enable is false ({settings.origin('enable')})"
    if settings.held:
        return f"held until the configuration is right: {settings.held_because}"
    if settings.export_mode == "off":
        return f"export mode is off ({settings.origin('export_mode')})"
    return ""

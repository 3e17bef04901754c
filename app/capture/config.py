"""Capture of a folder: makes a policy and compiled rules of its settings, or says why nothing is captured."""

from __future__ import annotations

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
    own = (settings.api_key.get_secret_value(),) if settings.api_key else ()
    return Capture(
        policy=Policy(
            mode=settings.export_mode,
            patterns=settings.redact_patterns,
            redact_secrets=settings.redact_secrets,
            prefix=settings.session_path_prefix,
        ),
        redaction=Redaction.compile(
            settings.redact_patterns, secrets=settings.redact_secrets, known_values=(*known, *own)
        ),
        user_id=settings.user_id or "",
    )


def why_nothing(settings: Settings) -> str:
    """Why nothing of a folder with these settings may leave, for a person; '' where something may."""
    if not settings.enable:
        return f"enable is false ({settings.origin('enable')})"
    if settings.held:
        return f"held until the configuration is right: {settings.held_because}"
    if settings.export_mode == "off":
        return f"export mode is off ({settings.origin('export_mode')})"
    return ""

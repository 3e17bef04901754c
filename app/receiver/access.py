"""Access to the receiver: its one key, and the pass that shows its page to whose receiver it is."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import string
from pathlib import Path

from app.errors import AppError
from app.receiver import handler
from app.runtime.filesystem import private_file

_KEY_SIGNS = string.ascii_lowercase + string.digits


class ReceiverError(AppError):
    """The receiver cannot start as asked."""


def own_key(store_path: Path) -> str:
    """The key of all receivers that keep this store; made when it is asked for first. Raises ReceiverError."""
    path = key_file(store_path)
    try:
        with private_file(path).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two that start at once would each make one
            data = file.read()
            if not data:
                groups = ("".join(secrets.choice(_KEY_SIGNS) for _ in range(7)) for _ in range(4))
                data = "-".join(["sk", "helicone", *groups]).encode() + b"\n"
                file.write(data)
        key = data.decode("utf-8", "replace").strip()
    except OSError as error:
        raise ReceiverError(f"{path} cannot be used: {error.strerror or error}") from error
    if not handler.is_well_formed(key):
        raise ReceiverError(f"{path} holds no key: delete it, and a new one is made")
    return key


def key_file(store_path: Path) -> Path:
    real = Path(os.path.realpath(store_path))
    return real.with_name(f"{real.name}.key")


def proof(key: str, nonce: str, port: int) -> str:
    """What only a receiver with this key can answer to a nonce, and only where it listens itself.

    Without the port another program could pass on the nonce to the receiver, and the answer back.
    """
    return hmac.new(key.encode(), f"receiver\0{port}\0{nonce}".encode(), hashlib.sha256).hexdigest()


def page_pass(key: str) -> str:
    """What lets a browser see the page: everybody on this machine can reach it. Tells nothing of the key."""
    return hashlib.sha256(f"page of the receiver\0{key}".encode()).hexdigest()[:32]


def cookie(port: int | None) -> str:
    """The name under which a browser keeps the pass: by itself it gives the cookies of one port to all others."""
    return f"opencode-helicone-receiver-{port or 80}"


def page_url(url: str, key: str) -> str:
    """The address of the page with its pass, for the person whose receiver it is."""
    return f"{url}/?pass={page_pass(key)}"

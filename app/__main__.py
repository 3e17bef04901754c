"""Entry point: decides which process this is, the hook, the worker or a command that a person typed."""

from __future__ import annotations

import gc
import signal
import sys
from importlib import import_module
from types import ModuleType

from app import __version__

STOPPED = 130
GARBAGE_MIN = 20_000
"""Objects between two looks for garbage: looking at modules while more are loaded took an eighth of a start."""


def main() -> None:
    """Ctrl-C ends it without a traceback from the first import on, with the exit code that commands have for it."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def _run() -> None:
    gc.set_threshold(GARBAGE_MIN)
    _put_off("asyncio")  # 15 ms; pydantic_settings needs it for a kind of command line that is not ours
    match sys.argv[1:]:
        case ["--version"]:
            run = _version
        # The hook starts with every OpenCode and stays: it loads no command line, no HTTP client, no terminal.
        case ["hook"] | ["hook", "--inbox", *_]:
            # Ctrl-C is meant for OpenCode, also while this process loads.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            from app.capture.daemon import main as run  # noqa: PLC0415 - the reason stands above
        case ["ready"]:
            run = ready
        case _:
            from app.cli.main import main as run  # noqa: PLC0415
    run()


def _put_off(name: str) -> None:
    """Load a module when something of it is first used.

    `importlib.util.LazyLoader` does so only from Python 3.12 on:
    before, importing it a second time is a use.
    """
    stand_in = ModuleType(name)

    def use(attribute: str) -> object:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    vars(stand_in)["__getattr__"] = use
    sys.modules.setdefault(name, stand_in)


def _version() -> None:
    sys.stdout.write(f"opencode-helicone {__version__}\n")


def ready() -> None:
    """Asked by a running process of whatever version: does this one start? Prints its version and its schema."""
    import app.capture.daemon  # noqa: PLC0415
    import app.capture.handler  # noqa: PLC0415
    import app.cli.main  # noqa: PLC0415
    import app.worker  # noqa: PLC0415
    from app.database.schema import migrations  # noqa: PLC0415

    app.cli.main.command_line([])
    sys.stdout.write(f"{__version__} {migrations()[-1][0]}\n")


if __name__ == "__main__":
    main()

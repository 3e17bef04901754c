"""Entry point: decides which process this is, the hook, the worker or a command that a person typed."""

from __future__ import annotations

import signal
import sys

STOPPED = 130


def main() -> None:
    """Ctrl-C ends it without a traceback from the first import on, with the exit code that commands have for it."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def _run() -> None:
    match sys.argv[1:]:
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


def ready() -> None:
    """Asked by a running process of whatever version: does this one start? Prints its version and its schema."""
    import app.capture.daemon  # noqa: PLC0415
    import app.cli.main  # noqa: PLC0415
    import app.worker  # noqa: PLC0415
    from app.database.schema import migrations  # noqa: PLC0415

    sys.stdout.write(f"{app.__version__} {migrations()[-1][0]}\n")


if __name__ == "__main__":
    main()

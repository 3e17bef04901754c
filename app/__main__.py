"""`python -m app`, and the command `opencode-helicone`."""

from __future__ import annotations

import sys


def main() -> None:
    # The hook starts with every OpenCode and stays: it loads no command line, no HTTP client, no terminal.
    if sys.argv[1:] == ["hook"]:
        from app.hook import main as run  # noqa: PLC0415 - the reason stands above
    else:
        from app.cli import main as run  # noqa: PLC0415
    run()


if __name__ == "__main__":
    main()

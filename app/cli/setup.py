"""Command `setup`: its options. What it asks, shows and does stands in `setup_dialogue`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import receiver_store

commands = typer.Typer()


@commands.command("setup")
def _setup(  # noqa: PLR0913 - one for each option
    *,
    cloud: Annotated[bool, typer.Option("--cloud", help="Send to Helicone's cloud.")] = False,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Send to a Helicone of your own.")] = None,
    receiver: Annotated[bool, typer.Option("--receiver", help="Start a receiver here, and send to that.")] = False,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Also http:// to another machine, where others read along.")
    ] = False,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates to trust beside Mozilla's list.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the key there, now and later.")] = None,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the key from standard input.")] = False,
    mode: Annotated[str | None, typer.Option(metavar="MODE", help="full, metadata_only or off.")] = None,
    no_test: Annotated[bool, typer.Option("--no-test", help="Send no log to see whether it arrives.")] = False,
) -> None:
    """Set everything up, and see that it works.

    Asks for the address, the key and what may leave; sends a tiny log and reads it back; writes your configuration and
    installs the plugin. What is given as an option is not asked for; without a terminal nothing is. Again, it changes
    what you choose otherwise.
    """
    from app.cli.setup_dialogue import Given, run  # noqa: PLC0415 - its HTTP client takes longer to load than most commands run

    run(
        Given(
            cloud=cloud,
            endpoint=endpoint,
            receiver=receiver,
            allow_http=allow_http,
            ca_file=ca_file,
            key_file=key_file,
            key_stdin=key_stdin,
            mode=mode,
            tests=not no_test,
        ),
        os.environ,
        receiver_store(),
    )

"""Command `config show`: prints the settings in force and where each comes from."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import typer

from app.capture.folders import effective
from app.cli.options import OF_CAPTURE, AsJson, complain, print_json, print_lines, takes
from app.cli.render import problem_lines
from app.database.open import read_ledger
from app.database.schema import SchemaError
from app.settings.lookup import Sources
from app.settings.views import Shown, shown

commands = typer.Typer(name="config", no_args_is_help=True, rich_markup_mode=None, help="Settings.")


@commands.command("show")
@takes(OF_CAPTURE)
def _config_show(sources: Sources, *, json_wanted: AsJson = False) -> None:
    """Print the settings and their origins.

    As they are in force in the current folder. The API key is not printed.
    """
    settings = sources.load()
    try:
        with closing(read_ledger(settings.spool_directory)) as db:
            settings = effective(db, sources, Path.cwd())
    except FileNotFoundError:
        pass  # then nothing is recorded
    except (OSError, sqlite3.Error, SchemaError) as error:
        complain(f"without what hooks have recorded: {error}")
    problems = [one.text for one in settings.complaints]
    if json_wanted:
        print_json({"settings": [asdict(one) for one in shown(settings)], "problems": problems})
    else:
        print_lines(_line(one) for one in shown(settings))
        print_lines(problem_lines(problems))


def _line(setting: Shown) -> str:
    value = setting.value if isinstance(setting.value, str) else json.dumps(setting.value, ensure_ascii=False)
    unit = f" {setting.unit}" if setting.unit else ""
    return f"{setting.name} = {value}{unit}  [{setting.origin}]"

"""What the program is told to do: one frozen `Settings`, and where each of its values came from.

    command line > environment > .env > plugin options (or what was recorded of them) > user config file > default

Sources are arguments: nothing here reads `os.environ` or the working directory; only the standard folders come from
the system (platformdirs, which honours the XDG variables). A value that is empty in the environment or in an `.env`
file counts as not set. A list in a higher source replaces the lower one whole.
"""

from app.settings.layers import (
    Plugin,
    Recorded,
    config_file_in,
    config_folder,
    dotenv_of_command,
    dotenv_unattended,
    from_arguments,
    load,
)
from app.settings.model import DEFAULT, Origin, Settings, SettingsError, standard_folder
from app.settings.views import Shown, capture_options, delivery_options, shown, to_record

__all__ = [
    "DEFAULT",
    "Origin",
    "Plugin",
    "Recorded",
    "Settings",
    "SettingsError",
    "Shown",
    "capture_options",
    "config_file_in",
    "config_folder",
    "delivery_options",
    "dotenv_of_command",
    "dotenv_unattended",
    "from_arguments",
    "load",
    "shown",
    "standard_folder",
    "to_record",
]

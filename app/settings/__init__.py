"""What the program is told to do: one frozen `Settings`, and where each of its values came from.

    command line > environment > .env > handed to the plugin > OpenCode's files > recorded > config file > default

What may leave is the strictest of all of them (see `layers`). Sources are arguments: nothing here reads `os.environ` or
the working directory; only the standard folders come from the system (platformdirs, which honours the XDG variables). A
value that is empty in the environment or in an `.env` file counts as not set.
"""

from app.settings.layers import load
from app.settings.model import Complaint, Settings, SettingsError, Source, standard_folder
from app.settings.options import Options, from_arguments
from app.settings.places import config_folder, existing
from app.settings.views import Shown, delivery_options, delivery_record, folder_record, shown

__all__ = [
    "Complaint",
    "Options",
    "Settings",
    "SettingsError",
    "Shown",
    "Source",
    "config_folder",
    "delivery_options",
    "delivery_record",
    "existing",
    "folder_record",
    "from_arguments",
    "load",
    "shown",
    "standard_folder",
]

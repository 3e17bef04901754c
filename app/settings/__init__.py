"""Settings: what the program is told to do, and where each value came from.

    command line > environment > .env > handed to the plugin > OpenCode's files > recorded > config file > default

What may leave is the strictest of all of them (see `layers`). Sources are arguments: nothing here reads `os.environ` or
the working directory; only the standard folders come from the system (platformdirs, which honours the XDG variables). A
value that is empty in the environment or in an `.env` file counts as not set.
"""

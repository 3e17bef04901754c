"""OpenCode: its store, the files of `opencode export` and its configuration, read from outside of it.

    store   what each generation of OpenCode keeps: SQLite files from 1.2 on, JSON files before; gives `Transcript`s
    files   {"info": {session}, "messages": [{"info": {…}, "parts": [{…}, …]}, …]}, one session each; `families` puts
            them together, and `snapshot` makes of a family what `parse` reads

The configuration is apart from them, in `app.sources.opencode.config`.
"""

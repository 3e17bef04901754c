"""Sources: the coding agents whose sessions are exported, a package for each."""

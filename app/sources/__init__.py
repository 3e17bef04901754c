"""The coding agents whose sessions are exported, a package for each."""

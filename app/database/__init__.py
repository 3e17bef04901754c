"""SQLite files: opened, migrated, and recovered when they are damaged."""

"""Out: a worker posts what waits, asks whether it still may, and reads it back."""

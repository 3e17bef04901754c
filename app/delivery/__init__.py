"""Delivery: a worker posts what waits, checks first whether it may, and reads it back."""

"""Privacy: decides what may leave, and takes the secrets out of it."""

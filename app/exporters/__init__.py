"""Exporters: kinds of destination, a package for each, and what the rest of the program knows of them."""

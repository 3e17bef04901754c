"""Recall: what was delivered and should not have been is found, and overwritten."""

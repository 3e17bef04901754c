"""The web view of queue and store: it reads, and changes nothing."""

"""What may leave: the policy, and how a text loses its secrets."""

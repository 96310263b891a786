"""Whose word counts, and how much: signatures, what is kept of each node, bounds on what one may do."""

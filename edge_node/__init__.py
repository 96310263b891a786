"""A node at the edge: it learns from private data that never leave it, and sends what it learnt."""

"""Client-level differential privacy: bounds on deltas, noise on versions, and what each node has spent."""

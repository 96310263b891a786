"""The node learns: a short-lived child process on the base model's 4-bit blocks."""

"""Preflight: whether this machine, these keys and this broker can run what is configured, and what to do where not."""

"""Decides: collects updates, groups them by version, aggregates, publishes. The core holds no socket, clock, model."""

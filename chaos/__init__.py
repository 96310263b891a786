"""Faults on purpose: real processes, killed and hindered by a plan from a seed, and a checker of what is left."""

"""Fuzzing of every decoder of bytes that others may have written: `make fuzz RUNS=10000000`."""

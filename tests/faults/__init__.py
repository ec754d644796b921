"""Faults of the world around a run: longer searches than those of the test suite."""

"""Sweeps of faults, for hours of their own: ``python -m tests.faults.NAME``."""

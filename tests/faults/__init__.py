"""Faults that are made on purpose; each module is a command."""

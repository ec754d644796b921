"""Faults made on purpose, many times over: each module is a command, and prints what was found."""

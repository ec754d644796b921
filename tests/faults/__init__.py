"""Faults made on purpose, many times over: each prints how often the fault was found."""

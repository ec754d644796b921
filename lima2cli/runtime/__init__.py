"""Ranks at work: frames move, nodes run."""

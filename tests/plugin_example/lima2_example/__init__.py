"""A node and a detector for lima2."""

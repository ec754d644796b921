"""Runs on disk and their channels: directory, ownership, saved plan, control socket, events, processes."""

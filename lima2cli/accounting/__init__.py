"""Accounting of every frame, from the reports of ranks and from files; summary, shortfalls, inspection."""

"""What processes of lima2 end with, as the command line documents it."""

FINE = 0
PROBLEMS = 1
"""The input has problems."""
USAGE = 2
"""Wrong usage, or an unreadable file."""
BUG = 3
"""A mistake of ours."""
FAILED = 10
"""The run failed."""
DATA_LOST = 11
"""Data were lost although the pipeline forbids it."""
UNFIT = 12
"""This machine cannot run the plan; nothing was started."""
STOPPED = 128
"""To which the number of the signal is added that has stopped it."""
INTERRUPTED = STOPPED + 2
"""By Ctrl-C."""

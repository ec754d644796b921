"""What a process has used."""

import resource

from lima2cli.runtime.messages import Usage


def usage() -> Usage:
    """CPU seconds (user + system) and peak resident set of this process (getrusage(2); Linux counts KiB)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)

"""Runs watched and driven over HTTP on this machine: REST, events, metrics; a page for browsers is in `web.page`."""

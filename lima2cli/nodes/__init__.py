"""Processing nodes, one file each."""

"""The processing graph of one receiver at work: blocks go from node to node, some of them through other ranks."""

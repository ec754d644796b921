"""Arithmetic on the pixels of blocks of frames, strip by strip, without knowledge of pipelines, nodes and files."""

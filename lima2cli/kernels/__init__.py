"""Arithmetic on the pixels of blocks of frames, strip by strip. It knows no pipeline, no node and no file."""

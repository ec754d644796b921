"""Streams of frames that other programs send and take: DECTRIS Stream V2 and array-1.0."""

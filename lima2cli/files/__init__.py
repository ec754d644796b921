"""Files that a run writes: NeXus in HDF5, frames, masters and tables, with checksums; and files mended after a kill."""

"""Files that a run writes: NeXus in HDF5, frames, masters and tables, with checksums, and their repair after a kill."""

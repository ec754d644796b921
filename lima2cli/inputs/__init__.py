"""Files of users that are read: frames in HDF5, NumPy, TIFF, EDF and CBF files, found, surveyed and opened."""

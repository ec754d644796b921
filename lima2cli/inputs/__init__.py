"""Find, survey and open users' files of frames: HDF5, NumPy, TIFF, EDF and CBF."""

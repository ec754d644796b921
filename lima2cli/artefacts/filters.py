"""Whether frames that are compressed can be written and read again by the HDF5 library of this machine."""

from collections.abc import Mapping

import numpy as np

from lima2cli.artefacts.compression import COMPRESSIONS, encoder, filter_options

CHUNK = (1, 64, 64)


def filter_problems() -> Mapping[str, str | None]:
    """By compression, what goes wrong with a chunk that is written and read again; None where all is well."""
    return {compression: _problem(compression) for compression in COMPRESSIONS}


def _problem(compression: str) -> str | None:
    """A file in memory is written as frame files are, and read through the library's filters."""
    frame = np.arange(CHUNK[1] * CHUNK[2], dtype=np.uint16).reshape(CHUNK)
    try:
        import h5py

        encode = encoder(compression, "uint16", CHUNK)
        with h5py.File("filters.h5", "w", driver="core", backing_store=False) as file:
            data = file.create_dataset("data", CHUNK, np.uint16, chunks=CHUNK, **filter_options(compression, "uint16"))
            stored = encode(frame)
            data.id.write_direct_chunk((0, 0, 0), stored.data, stored.mask)
            same = np.array_equal(data[()], frame)
    except (ImportError, OSError, ValueError, AttributeError) as error:  # AttributeError: a library without the filter
        return f"{type(error).__name__}: {error}"
    return None if same else "what is read is not what was written"


def hdf5_versions() -> str:
    """Of h5py and of the HDF5 library that it brings."""
    import h5py

    return f"h5py {h5py.version.version}, HDF5 {h5py.version.hdf5_version}"

"""The facts that a detector has of an acquisition, kept in its directory."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from lima2cli.declare.plain import Misshapen, from_plain, to_plain
from lima2cli.facts import ARRAYS, PIXEL_MASK, Facts
from lima2cli.files.appending import VERSIONS, written
from lima2cli.files.disk import disk_errors
from lima2cli.files.fields import PACKED
from lima2cli.files.tree import link_names

FACTS_FILE = "detector.hdf5"
"""No file of a pipeline, whatever its name, has this name: these end with .h5."""


def keep_facts(directory: Path, facts: Facts) -> None:
    """Keep the facts of an acquisition in its directory: values as JSON in the dataset ``facts``, arrays as datasets.

    Raises:
        OSError: the disk refuses.
    """
    path = str(directory / FACTS_FILE)
    with disk_errors(path), written(f"{path}.part", libver=VERSIONS) as file:
        file["facts"] = json.dumps(to_plain(replace(facts, arrays={})))
        for name, arrays in facts.arrays.items():
            of_all, packed = file.create_group(name), PACKED if name == PIXEL_MASK else {}
            for dataset, link in link_names(arrays).items():
                of_all.create_dataset(link, data=arrays[dataset], **packed).attrs["dataset"] = dataset
    os.replace(f"{path}.part", path)


def facts_of(directory: Path) -> Facts | None:
    """Return the facts that are kept in a directory; None where the detector has given none.

    Raises:
        OSError: they can't be read, or are damaged.
    """
    import h5py

    path = directory / FACTS_FILE
    if not path.exists():
        return None
    try:
        with h5py.File(path) as file:
            facts = from_plain(Facts, json.loads(file["facts"][()]))
            arrays = {
                name: {str(one.attrs["dataset"]): np.asarray(one[()], dtype) for one in file[name].values()}
                for name, dtype in ARRAYS.items()
                if name in file
            }
    except (RuntimeError, KeyError, ValueError, TypeError, Misshapen) as error:
        raise OSError(f"{FACTS_FILE} is damaged: {error}") from error
    return replace(facts, arrays=arrays)

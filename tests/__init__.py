"""Tests, in folders by what they are about; what several folders need is beside them.

architecture  layers, linters, public names, what the project requires
docs          the manual: snippets, links, pages made from declarations
golden        what is printed and planned, as texts that are kept
compiler      from text to plan: document, language, geometry
files         files of users that are read, files that runs write
detectors     detectors and scenes by themselves
nodes         nodes by themselves, against numpy
pipelines     whole runs, most of them on both transports
mpi           the transport, the launcher, what the ranks share with a machine
faults        what goes wrong; the searches for it (``python -m tests.faults``) and a sample of each
benchmarks    measurements, which are no tests
"""

import os
from pathlib import Path

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before numpy: each process of a run would start threads for all cores

ROOT = Path(__file__).parent.parent
"""Folder of the project."""

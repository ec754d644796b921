"""The UDP packets of PSI's JUNGFRAU modules: header version 2 of slsDetectorPackage (4.0 and later), little endian.

    offset  bytes
    0       8      frameNumber    counts from 1 after power-up or as set (``nextframenumber``)
    8       4      expLength      exposure, 100 ns
    12      4      packetNumber   0 to 127, in the order of the rows
    16      8      detSpec1       bunch ID
    24      8      timestamp      start of the exposure since the start of the measurement, 100 ns
    32      2      modId
    34      2 + 2  row, column    of the module in the detector
    38      2      detSpec2
    40      4      detSpec3
    44      2      detSpec4
    46      1      detType        3 is JUNGFRAU
    47      1      version        2
    48      8192   four rows of 1024 pixels, uint16: gain bits in the top two, 14 bits of ADC

Source: ``udpheader`` in the documentation of slsDetectorPackage.
"""

import numpy as np

ROWS, COLUMNS = 512, 1024
"""Pixels of a module."""

PACKETS = 128
"""Packets of a frame of a module."""

PIXELS = ROWS * COLUMNS // PACKETS
"""Pixels of a packet: whole rows."""

DETECTOR_TYPE, VERSION = 3, 2

TICK_NS = 100
"""Unit of the detector's times."""

ABSENT = 0x8000
"""Stored in pixels whose packet did not come. Gain bits 2 are no stage: node `gain` makes NaN of it."""

PACKET = np.dtype(
    [
        ("frame", "<u8"), ("exposure", "<u4"), ("packet", "<u4"), ("bunch", "<u8"), ("timestamp", "<u8"),
        ("module", "<u2"), ("row", "<u2"), ("column", "<u2"), ("spec2", "<u2"), ("spec3", "<u4"), ("spec4", "<u2"),
        ("type", "u1"), ("version", "u1"), ("pixels", "<u2", (PIXELS,)),
    ]
)  # fmt: skip
"""One packet, 8240 bytes."""

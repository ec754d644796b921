"""Detector `dectris`: frames of any detector of DECTRIS that sends Stream V2 (SIMPLON API 1.8 and later).

Each channel of the detector is a dataset of the same name. Image k of a series is frame k of the acquisition; images
that never arrive are missing. Pixels that hold the largest value of the dtype are masked: the detector marks
them so. What the start message says must agree with the pipeline, else no frame is taken.

Several may take images of one detector, and each image goes to one of them only: a single rank takes all. It holds
``depth`` images beyond those of a group; while they are full, or receivers have no room, nothing is read, and the
detector holds the rest. Those that it can't hold are missing: it leaves out their numbers.

What its start message says of the acquisition is saved with the frames, where the pipeline does not say it: energy and
wavelength, distance, beam centre, times, saturation, sensor, pixel size, threshold, axes, and, if the detector's
`header_detail` is `all`, the pixel mask and flat field of each channel.

With ``api`` the detector is configured, armed, triggered and disarmed by its REST interface; without, somebody else
does that, before the run or while it waits.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, Integer, MapOf, Table, Text, param
from lima2cli.detectors.base import Capabilities, DetectorConfig
from lima2cli.detectors.modules import ImageSize
from lima2cli.errors import EnvironmentUnfit
from lima2cli.frames import DatasetInfo, DetectorInfo, Files, Invalid
from lima2cli.geometry import Rect

if TYPE_CHECKING:
    from lima2cli.detectors.dectris_receiver import DectrisDetector

DTYPES = ("uint16", "uint8", "uint32")


@dataclass(frozen=True, kw_only=True)
class DetectorChannel:
    """A channel of the detector, such as `threshold_1` or `difference`."""

    dtype: str = param("Type of its pixels.", Choice(DTYPES))


@dataclass(frozen=True, kw_only=True)
class Dectris(DetectorConfig):
    """Any detector of DECTRIS that sends Stream V2: EIGER2, PILATUS4, SELUN."""

    kind: ClassVar[str] = "dectris"
    capabilities: ClassVar[Capabilities] = Capabilities(
        dtypes=DTYPES,
        modules=1,
        can_wait=True,
        triggers=("internal", "software", "external", "gate"),
        extraction=False,
    )

    stream: str = param(
        "Where the detector sends its images: `tcp://HOST:31001`.",
        Text(r"^(tcp://[^/:\s]+:[0-9]{1,5}|ipc://\S+)$", "an address such as `tcp://10.0.0.5:31001`"),
    )
    image: ImageSize = param("Size of its images.", Table(ImageSize))
    datasets: Mapping[str, DetectorChannel] = param(
        "Channels that are taken; others that it sends are left out.",
        MapOf(Table(DetectorChannel), minimum=1),
        {"threshold_1": DetectorChannel(dtype="uint16")},
    )
    api: str | None = param(
        "Address of its REST interface, `http://HOST`: it is then configured, armed and triggered by the run.",
        Text(r"^http://[^/\s]+$", "an address such as `http://10.0.0.5`"),
        None,
    )
    api_version: str = param("Version of that interface.", Text(r"^[0-9.]+$", "a version"), "1.8.0")
    header: str = param(
        "With `api`: what its start message says, basic, or all: pixel masks and flat fields, too.",
        Choice(("basic", "all")),
        "basic",
    )
    depth: int = param("Number of images that are held, beyond those of a group.", Integer(2, 65536), 64)
    threads: int = param("Threads that decompress.", Integer(1, 64), 2)

    def describe(self, files: Files) -> DetectorInfo:
        """See `DetectorConfig`."""
        image = Rect(0, 0, self.image.width, self.image.height)
        return DetectorInfo(
            kind=self.kind,
            name=self.name or self.kind,
            width=image.width,
            height=image.height,
            modules=(image,),
            datasets=tuple(_dataset(index, name, one) for index, (name, one) in enumerate(self.datasets.items())),
            pixel_size=None if self.pixel_size is None else (self.pixel_size.x, self.pixel_size.y),
            saturation=self.saturation,
            can_wait=True,
            can_fail=True,
        )

    def check_machine(self) -> None:
        """See `DetectorConfig`."""
        try:
            import cbor2  # noqa: F401
            import zmq  # noqa: F401
        except ImportError as error:
            raise EnvironmentUnfit(f"detector dectris: {error}; pip install 'lima2cli[stream]'") from error

    def open(self, info: DetectorInfo, files: Files) -> "DectrisDetector":
        """See `DetectorConfig`."""
        from lima2cli.detectors.dectris_receiver import DectrisDetector  # zmq: not for validate

        return DectrisDetector(self, info)


def _dataset(index: int, name: str, channel: DetectorChannel) -> DatasetInfo:
    largest = np.iinfo(channel.dtype).max
    bits = 8 * np.dtype(channel.dtype).itemsize
    return DatasetInfo(name, index, channel.dtype, bits, invalid=Invalid((float(largest),)), packed="bslz4")

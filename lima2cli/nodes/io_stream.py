"""Node `io_stream`: sends frames to other programs while they are taken, and hands them on as they are.

    {input: clean, io_stream: {endpoint: "tcp://127.0.0.1:31001"}}

``protocol: stream2`` is DECTRIS Stream V2 over ZeroMQ (PUSH): a start message before the first frame of an acquisition,
one for each frame, and an end message. Each frame goes to one of those that are connected, and so do start and end:
with one consumer for each receiver each gets a whole series. Several ``inputs`` of one size and dtype are channels, by
their names, of one message; frames that are not in all of them are left out, and counted as unmatched.

``image_id`` is the index of the frame among those of the flow, so that with several receivers, or where frames are
lost, numbers are left out. Integers and floats are sent as they are, compressed by bitshuffle-LZ4 (``bslz4``, as in
files) or not (``none``). Frames that the detector has compressed so (``dectris``), and that no node has changed, are
sent byte for byte as they came. `lima2 plan` says so.

``protocol: array-1.0`` is that of PSI's live streams (PUB): a JSON header, and the pixels. Each frame goes to all that
are connected; whoever is slow misses some.

Receiver k listens at the port of ``endpoint`` + k, as long as the run goes on. On 127.0.0.1 only programs of the same
machine can connect; on another address any that reach it, without a password.

Nobody is waited for without end. ``when_slow: wait`` waits at most ``patience`` for room, then leaves frames out until
there is room again; ``drop`` never waits. What was left out is counted, in the end message (``lost``) and as a warning.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from lima2cli.declare import Choice, Integer, Quantity, Text, param
from lima2cli.errors import NodeMisuse, UserCodeError
from lima2cli.files.compression import bitshuffle_lz4_view
from lima2cli.frames import Array, Block, FrameSpec
from lima2cli.nodes.base import Inputs, Transform, node
from lima2cli.packed import PackedBlock

PROTOCOLS = ("stream2", "array-1.0")


@node("io_stream")
class IoStream(Transform):
    """Sends frames to other programs, as DECTRIS Stream V2 or as array-1.0."""

    wiring: ClassVar[Literal["input", "inputs"]] = "inputs"

    protocol: str = param("Messages and sockets.", Choice(PROTOCOLS), "stream2")
    endpoint: str = param(
        "Where receiver 0 listens; receiver k at the port + k.",
        Text(r"^tcp://[^/:\s]+:[0-9]{1,5}$", "an address such as `tcp://127.0.0.1:31001`"),
        "tcp://127.0.0.1:31001",
    )
    channel: str | None = param(
        "Name of the channel in messages of stream2, of a single input; default: threshold_1.",
        Text(r"^\S+$", "a name"),
        None,
    )
    compression: str | None = param("Default: bslz4, of array-1.0 none.", Choice(("bslz4", "none")), None)
    when_slow: str = param("What is done where frames are not taken in time.", Choice(("wait", "drop")), "wait")
    patience: float = param("The longest wait for room, and at the end.", Quantity("seconds", minimum=0), 1.0)
    queue: int = param("Frames that wait to be taken.", Integer(1, 100_000), 16)

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`: the frames that enter, of several inputs the first."""
        self._check_channels(inputs.specs)
        if self.protocol == "array-1.0" and self.compression == "bslz4":
            message, help = "array-1.0 has no compression", "none, or leave it out"
            raise NodeMisuse("stream-parameters", message, ("compression",), help)
        _, port = self.address(0)
        if not 0 < port <= 65535 - 1024:
            message = f"{port} leaves no room for the ports of several receivers"
            raise NodeMisuse("stream-parameters", message, ("endpoint",), "1 to 64511")
        return inputs.spec

    @property
    def _compression(self) -> str:
        return self.compression or ("none" if self.protocol == "array-1.0" else "bslz4")

    def as_sent(self, inputs: Inputs) -> bool:
        """See `Node.as_sent`: where all channels come compressed as they are sent."""
        return all(spec.packed == self._compression for spec in inputs.specs.values())

    def _check_channels(self, specs: Mapping[str, FrameSpec]) -> None:
        """Refuse channels that no message can have together."""
        (first, one), *others = specs.items()
        if others and self.protocol == "array-1.0":
            message, help = "array-1.0 has no channels", "one `input`, or protocol: stream2"
            raise NodeMisuse("stream-parameters", message, ("protocol",), help)
        if others and self.channel is not None:
            message, help = "of several inputs each is a channel of its name", "leave it out"
            raise NodeMisuse("stream-parameters", message, ("channel",), help)
        for name, other in others:
            if (other.shape, other.dtype) != (one.shape, one.dtype):
                message = f"`{name}` is {other}, `{first}` {one}"
                raise NodeMisuse("edge-mismatch", message, ("inputs", name), "channels have one size and one dtype")

    def channels(self, specs: Mapping[str, FrameSpec]) -> Mapping[str, FrameSpec]:
        """Return the channels of frames that enter, by their names, where ``specs`` are by those of the inputs."""
        (first, *others) = specs.values()
        return specs if others else {self.channel or "threshold_1": first}

    def address(self, receiver: int) -> tuple[str, int]:
        """Return host and port at which a receiver listens."""
        host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
        return host, int(port) + receiver

    def bind(self, inputs: Inputs) -> "Sender":
        """See `Transform.bind`: listens from now on."""
        try:
            import cbor2  # noqa: F401
            import zmq  # noqa: F401
        except ImportError as error:
            raise UserCodeError(f"{error}; pip install 'lima2cli[stream]'") from error
        return Sender(self, inputs)


class Sender:
    """See `Transformer`: a socket, and what is sent there."""

    def __init__(self, node: IoStream, inputs: Inputs) -> None:
        import zmq

        self._node, self._rule = node, inputs.rule
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB if node.protocol == "array-1.0" else zmq.PUSH)
        self._socket.set_hwm(node.queue)
        self._socket.linger = round(1000 * node.patience)
        host, port = node.address(inputs.receiver)
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(f"cannot listen at {host}:{port}: {error}") from error
        made = _Arrays(inputs.spec) if node.protocol == "array-1.0" else _Stream2(node, node.channels(inputs.specs))
        self._messages: _Messages = made
        self._start: Sequence[bytes] = ()
        self._patient = node.when_slow == "wait"
        self._begun, self._open, self.sent, self.lost = False, False, 0, 0
        self._last: tuple[int, int] = (0, 0)

    def step(self, block: Block) -> Block:
        """See `Transformer.step`: the block itself."""
        self._send([block])
        return block

    def join(self, blocks: Mapping[str, Block]) -> Block:
        """See `JoinedTransformer.join`: the block of the first input."""
        self._send(list(blocks.values()))
        return next(iter(blocks.values()))

    def _send(self, blocks: Sequence[Block]) -> None:
        """Send the frames of all channels, in their order. None is sent before the start message is taken."""
        numbers, times = blocks[0].numbers, blocks[0].times
        if not self._begun:
            self._begun, self._start = True, self._messages.begin(int(times[0]))
        channels = zip(*map(self._messages.images, blocks), strict=True)
        indices = self._rule.index(numbers.astype(np.int64)).tolist()
        for images, number, time_ns in zip(channels, indices, times.tolist(), strict=True):
            self._open = self._open or self._offer(self._start)
            taken = self._open and self._offer(self._messages.frame(images, number, time_ns))
            self.sent, self.lost = self.sent + taken, self.lost + (not taken)

    def finish(self) -> None:
        """See `Transformer.finish`: the series ends."""
        if self._open:
            self._patient = True
            self._offer(self._messages.end(self.lost))
        self._patient = self._node.when_slow == "wait"
        self._last, self._begun, self._open, self.sent, self.lost = (self.sent, self.lost), False, False, 0, 0

    def warnings(self) -> Sequence[str]:
        """Return what the last acquisition has left out."""
        sent, lost = self._last
        return [f"{lost} of {sent + lost} frames were not sent: they were not taken in time"] if lost else []

    def close(self) -> None:
        """See `Transformer.close`: what still waits is sent, if it is taken within the patience."""
        self._socket.close()
        self._context.term()

    def _offer(self, parts: Sequence[bytes]) -> bool:
        """Return whether a message was taken; after one that was not, no other is waited for until one is."""
        import zmq

        if not parts:
            return True
        end = time.monotonic() + self._node.patience
        while True:
            try:
                self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
            except zmq.Again:
                if not self._patient or time.monotonic() > end:
                    self._patient = False
                    return False
                self._socket.poll(10, zmq.POLLOUT)
            else:
                self._patient = self._node.when_slow == "wait"
                return True


Image = bytes | Array
"""One frame of a channel: its bytes, compressed, or its pixels (height, width), C-contiguous."""


class _Messages:
    """The messages of a protocol: parts of each, none where there is no such message."""

    def begin(self, time_ns: int) -> Sequence[bytes]:
        """Return the message before the first frame, which is of this time."""
        return ()

    def images(self, block: Block) -> Iterator[Image]:
        """Yield what is sent of each frame of a channel."""
        return map(np.ascontiguousarray, block.frames)

    def frame(self, images: Sequence[Image], number: int, time_ns: int) -> Sequence[bytes]:
        """Return the message of a frame, of which ``images`` are the channels."""
        raise NotImplementedError

    def end(self, lost: int) -> Sequence[bytes]:
        """Return the message after the last frame."""
        return ()


class _Arrays(_Messages):
    """Array-1.0: a header of JSON and the pixels, row by row."""

    def __init__(self, spec: FrameSpec) -> None:
        self._header = {"htype": "array-1.0", "shape": list(spec.shape), "type": spec.dtype}

    def frame(self, images: Sequence[Image], number: int, time_ns: int) -> Sequence[bytes]:
        """See `_Messages.frame`."""
        header = self._header | {"frame": number, "timestamp_ns": time_ns}
        return json.dumps(header).encode(), bytes(images[0])


class _Stream2(_Messages):
    """DECTRIS Stream V2."""

    def __init__(self, node: IoStream, channels: Mapping[str, FrameSpec]) -> None:
        from lima2cli.stream import stream2

        spec = next(iter(channels.values()))
        self._wire, self._spec, self._channels = stream2, spec, channels
        self._series, self._id, self._start_ns = 0, "", 0
        size, count = np.dtype(spec.dtype).itemsize, spec.shape[0] * spec.shape[1]
        self._compress: Callable[[Array], memoryview] | None = None
        if node.compression != "none":
            self._compress = bitshuffle_lz4_view(size, stream2.BLOCK_BYTES // size, count)
        if node.compression != "none" and self._compress is None:
            raise UserCodeError("this hdf5plugin does not give its bitshuffle-LZ4; compression: none")

    def begin(self, time_ns: int) -> Sequence[bytes]:
        """See `_Messages.begin`: all that is known; fields that are not are left out."""
        height, width = self._spec.shape
        self._series, self._id, self._start_ns = self._series + 1, secrets.token_hex(13).upper(), time_ns
        fields: dict[str, Any] = {
            "arm_date": self._wire.date_of(time.time_ns()),
            "channels": list(self._channels),
            "image_dtype": self._spec.dtype,
            "image_size_x": width,
            "image_size_y": height,
        }
        if self._spec.saturation is not None:
            fields["saturation_value"] = int(self._spec.saturation)
        masks = {name: spec.mask.astype(np.uint32) for name, spec in self._channels.items() if spec.mask is not None}
        if masks:
            fields["pixel_mask"] = {name: self._wire.array_of(mask) for name, mask in masks.items()}
        return (self._wire.start_message(self._series, self._id, fields),)

    def images(self, block: Block) -> Iterator[Image]:
        """See `_Messages.images`: where the detector has compressed them in the same way, as it has sent them."""
        if self._compress is None or not isinstance(block, PackedBlock):
            return super().images(block)
        return (data if frame is None else frame[0] for data, frame in block.sent("bslz4"))

    def frame(self, images: Sequence[Image], number: int, time_ns: int) -> Sequence[bytes]:
        """See `_Messages.frame`."""
        packed: list[bytes | memoryview] = [bytes(self._packed(image)) for image in images[:-1]]
        packed.append(self._packed(images[-1]))  # which is valid until another is made
        each = zip(self._channels, packed, strict=True)
        dtype, shape, compressed = self._spec.dtype, self._spec.shape, self._compress is not None
        channels = {name: (dtype, shape, pixels, compressed) for name, pixels in each}
        return (self._wire.image_message(self._series, self._id, number, (self._start_ns, time_ns), channels),)

    def _packed(self, image: Image) -> bytes | memoryview:
        """Return an image as it travels."""
        if isinstance(image, bytes):
            return image
        return image.reshape(-1).view(np.uint8).data if self._compress is None else self._compress(image)

    def end(self, lost: int) -> Sequence[bytes]:
        """See `_Messages.end`."""
        return (self._wire.end_message(self._series, self._id, lost),)

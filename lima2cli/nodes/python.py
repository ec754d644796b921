"""Node `python`: delegates processing to a Python function of the user's.

    f(frames, numbers, **params) → (n, *shape)

``frames`` (n, height, width) is read-only, ``numbers`` (n,) uint64 are their frame numbers. Instead of a function a
class may be named: ``C(spec, **params)`` is made once per receiver, called like the function, and closed at the end
where it has a method ``close``. ``spec`` is the `FrameSpec` of what comes in.

``output`` declares dtype and shape of what is returned, per frame: (height, width), or (length,) of a vector; default:
as the input. What is returned must convert to that dtype without changing kind (numpy's ``same_kind``). Where the shape
is the input's the static mask goes on with the frames; else they are no longer a picture of the detector. Vectors
travel and are saved as frames of one row.

Masked pixels come as they are: gaps with the gap value, of single frames invalid values or NaN; ``spec.mask`` and
``spec.invalid`` say which. What is returned is taken as it is, too. Where shape and dtype are the input's, its invalid
values are no measurement in the result either; else NaN alone.

``on_error`` says what an exception does: ``stop`` ends the run with file, line and frame number; ``drop`` gives the
frames of the block up, and counts them; ``pass`` hands the input on unchanged (it must then be of the output's dtype
and shape). Validation looks for the name in the file's text; nothing of the user's is run before the run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lima2cli.declare import Anything, Choice, FunctionReference, MapOf, Table, param
from lima2cli.geometry import Rule
from lima2cli.nodes.base import Dropped, Transform, Transformer
from lima2cli.nodes.function import Output, close, load, look, ready, words
from lima2cli.spec import Block, Files, FrameSpec


@dataclass(frozen=True, kw_only=True)
class Python(Transform):
    """Delegates processing to a Python function."""

    kind: ClassVar[str] = "python"

    function: str = param(
        "`module:name`, or `file.py:name`, relative to the pipeline's file.",
        FunctionReference(),
    )
    params: Mapping[str, Any] = param("Keyword arguments.", MapOf(Anything(), r"^[A-Za-z_][A-Za-z0-9_]*$"), {})
    output: Output = param("What it returns for each frame.", Table(Output), Output())
    on_error: str = param(
        "stop the run; drop the block and count it; or pass the input on unchanged.",
        Choice(("stop", "drop", "pass")),
        "stop",
    )

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`; looks whether the function is there, without running anything."""
        look(self.function, files)
        return self.output.infer(spec, self.on_error)

    def start(self, spec: FrameSpec, files: Files, rule: Rule) -> Transformer:
        """See `Transform.start`."""
        function, params = ready(load(self.function, files), spec, self.params)
        return _Call(self, function, params, self.infer(spec, files))


class _Call:
    """See `Transformer`."""

    def __init__(
        self, node: Python, function: Callable[..., Any], params: Mapping[str, Any], output: FrameSpec
    ) -> None:
        self._node, self._function, self._params, self._spec = node, function, dict(params), output

    def step(self, block: Block) -> Block | None:
        """See `Transformer.step`."""
        frames = block.frames.view()
        frames.flags.writeable = False
        try:
            returned = self._function(frames, block.numbers, **self._params)
            result = self._node.output.fit(returned, len(frames), self._spec)
        except Exception as error:  # noqa: BLE001  user code may raise anything
            return self._failed(error, block)
        return Block(result, block.numbers, block.times, False)

    def _failed(self, error: Exception, block: Block) -> Block:
        if self._node.on_error == "pass":
            return block
        message = words(error, __file__)
        if self._node.on_error == "drop":
            raise Dropped(message) from error
        raise RuntimeError(message) from error

    def finish(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """See `Transformer.close`."""
        close(self._function)

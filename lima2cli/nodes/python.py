"""Node `python`: delegates processing to a Python function of the user's.

    f(frames, numbers, **params) → (n, *shape)

``frames`` (n, height, width) and ``numbers`` (n,) uint64, their frame numbers, are read-only. Instead of a function a
class may be named: ``C(spec, **params)`` is made once per receiver, called like the function, and closed at the end
where it has a method ``close``. ``spec`` is the `FrameSpec` of what comes in.

``output`` declares dtype and shape of what is returned, per frame: (height, width), or (length,) of a vector; default:
as the input. Where the shape is the input's the static mask goes on with the frames; else they are no longer a picture
of the detector. Vectors travel and are saved as frames of one row.

Masked pixels arrive as they are: gaps with the gap value, of single frames invalid values or NaN; ``spec.mask`` and
``spec.invalid`` say which. What is returned is taken as it is, too. Where shape and dtype are the input's, its invalid
values are not measurements in the result either; else NaN alone.

A value that does not fit the declared dtype is an error, which names frame and value: nothing is wrapped, cut or
clipped. Integers take whole numbers in their range (booleans, and floats without a fraction, too), floats what they can
round to a finite number, NaN and infinity as they are. Masked values of numpy's masked arrays become NaN, in integers
they are an error. Complex numbers and objects always are.

``on_error`` says what an exception does, ``sys.exit()`` too, and a result that does not fit: ``stop`` ends the run with
file, line and frame number; ``drop`` drops the frames of the block, and counts them; ``pass`` passes the input on
unchanged (it must then be of the output's dtype and shape). Validation looks in the file's text for
the name and what it takes; nothing of the user's is run before the run.
"""

from collections.abc import Mapping
from typing import Any

from lima2cli.declare import Anything, Choice, FunctionReference, MapOf, Table, param
from lima2cli.errors import UserCodeError
from lima2cli.frames import Block, FrameSpec
from lima2cli.nodes.base import BlockDropped, Inputs, Transform, Transformer, node
from lima2cli.nodes.user_function import Code, FunctionOutput, check_function, load


@node("python")
class Python(Transform):
    """Delegates processing to a Python function."""

    function: str = param(
        "`module:name`, or `file.py:name`, relative to the pipeline's file.",
        FunctionReference(),
    )
    params: Mapping[str, Any] = param("Keyword arguments.", MapOf(Anything(), r"^[A-Za-z_][A-Za-z0-9_]*$"), {})
    output: FunctionOutput = param("What it returns for each frame.", Table(FunctionOutput), FunctionOutput())
    on_error: str = param(
        "After an error: stop the run; drop the block and count it; or pass the input on unchanged.",
        Choice(("stop", "drop", "pass")),
        "stop",
    )

    @property
    def calls(self) -> str | None:
        """See `Node.calls`."""
        return self.function

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`; looks whether the function is there, without running anything."""
        check_function(self.function, inputs.files, self.params)
        return self.output.infer(inputs.spec, self.on_error)

    def bind(self, inputs: Inputs) -> Transformer:
        """See `Transform.bind`."""
        code = Code(self.function, lambda: load(self.function, inputs.files), inputs.spec, self.params)
        return _Call(self, code, self.infer(inputs))


class _Call:
    """See `Transformer`."""

    def __init__(self, node: Python, code: Code, output: FrameSpec) -> None:
        self._node, self._code, self._spec = node, code, output

    def step(self, block: Block) -> Block | None:
        """See `Transformer.step`."""
        try:
            returned = self._code(block.frames, block.numbers)
            result = self._code.fit(self._node.output, returned, block.numbers, self._spec, self._node.function)
        except UserCodeError as error:
            if self._node.on_error == "stop":
                raise
            instead = block if self._node.on_error == "pass" else None
            raise BlockDropped(f"it has failed (on_error: {self._node.on_error}): {error}", instead) from error
        return Block(result, block.numbers, block.times, False)

    def finish(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """See `Transformer.close`."""
        self._code.close()

"""Node `mpi`: delegates processing to other MPI processes, which join the run.

    shift: {input: data, mpi: {function: "align.py:Shift", output: {dtype: float32, shape: [2]}}}
    shift: {input: data, mpi: {command: [python, align.py], output: {dtype: float32, shape: [2]}}}

``function`` is served by processes of lima2's own: a function or a class, as of the node `python`, made once in each
worker. ``command`` is a program of the user's, which joins the run with `lima2cli.worker`; it is started in the folder
of the pipeline's file, and the word ``python`` at its beginning is the Python that runs lima2.

Each receiver gives its blocks to the ``ranks`` workers in turn, and passes on what they reply in the order of frames. A
worker gets the blocks of one receiver in the order of frames, those of several as they arrive. ``reply: false``: the
frames flow on unchanged at once, and nothing is replied.

``params`` are keyword arguments, ``output`` declares what is replied, per frame; see `python`.

``on_error`` says what becomes of a block whose worker raises, exits before its time, or does not reply within the
acquisition's ``timeout``: ``stop`` ends the run; ``drop`` gives its frames up, and counts them; ``pass`` hands the
input on unchanged. With ``reply: false`` drop and pass are the same: the frames have gone on. A worker that has exited,
or has not replied, gets no more blocks. A worker that is killed ends the run, as does every rank of MPI.
"""

from collections.abc import Mapping
from typing import Any

from lima2cli.declare import Anything, Choice, Flag, FunctionReference, Integer, ListOf, MapOf, Table, Text, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Files, FrameSpec
from lima2cli.nodes.base import Delegate, node
from lima2cli.nodes.user_function import FunctionOutput, look


@node("mpi")
class Mpi(Delegate):
    """Delegates processing to other MPI processes."""

    command: tuple[str, ...] | None = param(
        "A program that joins the run, and its arguments; or `function`.", ListOf(Text(may_hide=True), 1), None
    )
    function: str | None = param(
        "`module:name`, or `file.py:name`, relative to the pipeline's file; or `command`.", FunctionReference(), None
    )
    params: Mapping[str, Any] = param("Keyword arguments.", MapOf(Anything(), r"^[A-Za-z_][A-Za-z0-9_]*$"), {})
    ranks: int = param("Processes, which take blocks in turn.", Integer(1, 1024), 1)
    reply: bool = param("Whether they reply; if not, the frames flow on unchanged.", Flag(), True)
    output: FunctionOutput = param("What they reply for each frame.", Table(FunctionOutput), FunctionOutput())
    on_error: str = param(
        "stop the run; drop the block and count it; or pass the input on unchanged.",
        Choice(("stop", "drop", "pass")),
        "stop",
    )

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`; looks whether the function is there, without running anything."""
        if (self.command is None) == (self.function is None):
            raise NodeMisuse("command-or-function", "either `command` or `function` says what the processes do")
        if self.function is not None:
            look(self.function, files, self.params)
        for i, argument in enumerate(self.command or ()):
            if argument == ":" or (i == 0 and argument.startswith("-")):
                message = f"mpiexec would not take `{argument}` for a part of the command"
                raise NodeMisuse("bad-command", message, ("command", i), "write a script around it")
        if self.reply:
            return self.output.infer(spec, self.on_error)
        if self.output != FunctionOutput():
            raise NodeMisuse("unused-output", "nothing is replied, so there is no output", ("output",), "reply: true")
        return spec

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

``on_error`` says what happens to a block whose worker raises, exits before its time, or does not reply within the
acquisition's ``timeout``: ``stop`` ends the run; ``drop`` drops its frames, and counts them; ``pass`` passes the input
on unchanged. With ``reply: false`` drop and pass are the same: the frames have already been passed on. A worker that
has exited, or has not replied, gets no more blocks. A worker that is killed ends the run, as does every rank of MPI.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lima2cli.declare import Anything, Choice, Flag, FunctionReference, Integer, ListOf, MapOf, Table, Text, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import FrameSpec
from lima2cli.nodes.base import Exchange, Inputs, WorkerPool, node
from lima2cli.nodes.user_function import FunctionOutput, check_function


@node("mpi")
class Mpi(Exchange):
    """Delegates processing to other MPI processes."""

    command: tuple[str, ...] | None = param(
        "A program that joins the run, and its arguments; or `function`.", ListOf(Text(may_hide=True), 1), None
    )
    function: str | None = param(
        "`module:name`, or `file.py:name`, relative to the pipeline's file; or `command`.", FunctionReference(), None
    )
    params: Mapping[str, Any] = param("Keyword arguments.", MapOf(Anything(), r"^[A-Za-z_][A-Za-z0-9_]*$"), {})
    ranks: int = param("Number of processes, which take blocks in turn.", Integer(1, 1024), 1)
    reply: bool = param("Whether they reply; if not, the frames flow on unchanged.", Flag(), True)
    output: FunctionOutput = param("What they reply for each frame.", Table(FunctionOutput), FunctionOutput())
    on_error: str = param(
        "After an error: stop the run; drop the block and count it; or pass the input on unchanged.",
        Choice(("stop", "drop", "pass")),
        "stop",
    )

    @property
    def workers(self) -> WorkerPool:
        """See `Exchange.workers`."""
        return WorkerPool(**{field.name: getattr(self, field.name) for field in fields(self)})

    @property
    def calls(self) -> str | None:
        """See `Node.calls`."""
        return self.function

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`; looks whether the function is there, without running anything."""
        if (self.command is None) == (self.function is None):
            raise NodeMisuse("command-or-function", "either `command` or `function` says what the processes do")
        if self.function is not None:
            check_function(self.function, inputs.files, self.params)
        for i, argument in enumerate(self.command or ()):
            if argument == ":" or (i == 0 and argument.startswith("-")):
                message = f"mpiexec would not treat `{argument}` as a part of the command"
                raise NodeMisuse("bad-command", message, ("command", i), "wrap the command in a script")
        if self.reply:
            return self.output.infer(inputs.spec, self.on_error)
        if self.output != FunctionOutput():
            raise NodeMisuse("unused-output", "there is no reply, so there is no output", ("output",), "reply: true")
        return inputs.spec

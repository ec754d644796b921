"""Processing of one's own on the receivers, in place of the nodes of a pipeline or next to them.

    from lima2cli.processing import Receiver

    def main(receiver: Receiver) -> None:
        for block in receiver.blocks("data"):
            ...  # block.frames (n, height, width), block.numbers (n,), block.times (n,)

`lima2 run pipeline.yaml --receiver own.py:main` calls it on every receiver. What it does before it asks for blocks is
done before the detector starts, what it does after the last one before the run ends.
"""

from lima2cli.graph.user_program import Receiver, SourceBlock

__all__ = ["Receiver", "SourceBlock"]

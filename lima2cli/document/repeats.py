"""Mistakes in what was copied several times, told once."""

from lima2cli.diagnostics import Findings
from lima2cli.document.places import Document


def once(document: Document, findings: Findings) -> Findings:
    """The findings; of those of copies that show the same rule at the same place, the first one only.

    What is found where the copies were taken from counts as the first.
    """
    seen = {(item.rule, document.locate(item)) for item in findings if not document.is_copy(item.at)}
    left = Findings()
    for item in findings:
        here = (item.rule, document.locate(item))
        if document.is_copy(item.at):
            if here in seen:
                continue
            seen.add(here)
        left.add(item)
    return left

"""Texts that are kept in files: compared, or written anew where ``LIMA2_UPDATE`` is set."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def agrees(path: Path, text: str) -> None:
    """Assert that the file holds the text; with ``LIMA2_UPDATE=1`` make it so."""
    if os.environ.get("LIMA2_UPDATE"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, f"{path} differs; LIMA2_UPDATE=1 writes it anew"

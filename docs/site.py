"""Hooks of mkdocs for the web site of this documentation: see .mkdocs.yml."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

HERE = Path(__file__).parent
ROOT = HERE.parent
LINK = re.compile(r"(?<=\]\()((?:\.\./)+[\w./-]+)(?=[)#])")
"""A link that may leave the folder."""

INFO = re.compile(r"^(```\w+) [^\n]*$", re.MULTILINE)
"""The first line of a block of code, with words for the tests behind its language."""


def anchor(title: str, _: str) -> str:
    """Return the name of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def on_config(config: Any) -> Any:
    """Make the navigation: the sections of the index, and in each the pages that it lists."""
    sections = re.split(r"^\*\*(\w[\w -]*)\*\*", (HERE / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[
        1:
    ]
    listed = [re.findall(r"\[([^\]]+)\]\(([\w/-]+\.md)\)", part) for part in sections[1::2]]
    pages = [[{title: page} for title, page in each] for each in listed]
    config["nav"] = [{"lima2": "index.md"}, *({name: each} for name, each in zip(sections[::2], pages, strict=True))]
    config["mdx_configs"]["toc"]["slugify"] = anchor
    return config


def outside(page: Path, link: str) -> Path | None:
    """Return the path, from the root, of the file that a page's link leads to; None if it is in the documentation."""
    target = (page.parent / link).resolve()
    return target.relative_to(ROOT) if target.is_file() and not target.is_relative_to(HERE) else None


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file that is linked outside of the documentation: its text."""
    for page in [each for each in files.documentation_pages() if each.abs_src_path]:
        path = Path(page.abs_src_path)
        for link in LINK.findall(path.read_text(encoding="utf-8")):
            file = outside(path, link)
            if file is not None and files.get_file_from_path(f"source/{file}.md") is None:
                text = (ROOT / file).read_text(encoding="utf-8")
                if file.suffix != ".md":
                    text = f"# {file}\n\n`````{file.suffix[1:].replace('txt', 'text')}\n{text}\n`````\n"
                files.append(
                    File.generated(config, f"source/{file}.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV)
                )
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Lead links that leave the documentation to these pages, and show blocks of code without words for the tests."""
    if not page.file.abs_src_path:
        return markdown

    def inside(match: re.Match[str]) -> str:
        file = outside(Path(page.file.abs_src_path), match[0])
        return match[0] if file is None else "../" * page.file.src_uri.count("/") + f"source/{file}.md"

    return INFO.sub(r"\1", LINK.sub(inside, markdown))

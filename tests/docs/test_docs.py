"""The manual says what is so: snippets are checked, links lead somewhere, generated pages are those of the code."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lima2cli.check import Checked, check_text
from lima2cli.document import Profile
from lima2cli.document.render import show_text
from lima2cli.errors import ExitCode, of_signal
from tests import ROOT
from tests.docs.manual import manual
from tests.golden import agrees

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
COMMANDS = (
    'python3 -m venv .venv && .venv/bin/pip install -q ".[mpi]" && .venv/bin/lima2 run examples/pipelines/maze.yaml',
    'python3 -m venv .venv && .venv/bin/pip install -q -e ".[mpi,test]" && .venv/bin/pytest -q',
)

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```\n\n```text printed\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A YAML block of a page. Its info string: ``fails=rule``, ``warns=rule``, ``set=key=value``, ``needs=module``,
    ``profile=text``, which is laid on it as `lab.yaml`.
    """

    page: Path
    line: int
    info: str
    text: str

    def word(self, key: str) -> list[str]:
        """Values of ``key=…`` in the info string; ``~`` stands for a space."""
        return [word.partition("=")[2].replace("~", " ") for word in self.info.split() if word.startswith(f"{key}=")]

    def check(self, base: Path) -> Checked:
        """Return the compiler's answer."""
        profiles = [Profile("lab.yaml", text) for text in self.word("profile")]
        return check_text(
            self.text, "pipeline.yaml", base, cores=2, environment={}, overrides=self.word("set"), profiles=profiles
        )


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(content):
            if match[1] == "yaml":
                yield Snippet(page, content.count("\n", 0, match.start()) + 1, match[2].strip(), match[3])


SNIPPETS = list(snippets())
SHOWING = [page for page in PAGES if PRINTED.search(page.read_text(encoding="utf-8"))]
"""Pages that show what is printed."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the manual's pipelines name."""
    import h5py

    folder = tmp_path_factory.mktemp("data")
    frames = np.zeros((10, 256, 256), np.uint16)
    for name, paths in {"my.h5": ["data"], "scan.h5": ["entry/data"], "two.h5": ["entry/data", "entry/other"]}.items():
        with h5py.File(folder / name, "w") as file:
            for path in paths:
                file[path] = frames
    with h5py.File(folder / "projections.h5", "w") as file:
        file["projections"], file["dark"], file["flat"] = frames, frames[0], frames[0] + 1
    with h5py.File(folder / "cut.h5", "w") as file:
        file["d/data"] = frames[0, :128]
        file["d/image_operation/origin/x"], file["d/image_operation/origin/y"] = 0, 0
        file["d/image_operation/binning/x"], file["d/image_operation/binning/y"] = 1, 1
        file["d/image_operation/width"], file["d/image_operation/height"] = 256, 128
        file["d/image_operation/flip"], file["d/image_operation/rotation"] = "none", 0
    for name in ("dark.npy", "flat.npy"):
        np.save(folder / name, np.ones((256, 256), np.float32))
    np.save(folder / "mask.npy", np.eye(256, dtype=np.uint8))
    np.save(folder / "inverted.npy", 1 - np.eye(256, dtype=np.uint8))
    np.save(folder / "small.npy", np.ones((100, 80), np.float32))
    np.save(folder / "many.npy", np.ones((1025, 2, 2), np.uint8))
    np.save(folder / "line.npy", np.ones(256, np.float32))
    np.save(folder / "complex.npy", np.ones((256, 256), np.complex64))
    record = {"version": 1, "name": "smartpix", "image": {"width": 500, "height": 500}}
    record["datasets"] = {"CTR1": {"dtype": "uint16"}, "CTR2": {"dtype": "uint16"}}
    (folder / "smartpix.json").write_text(json.dumps(record))
    with h5py.File(folder / "holes.h5", "w") as file:
        file.create_dataset("data", (10, 256, 256), np.uint16, chunks=(1, 256, 256))[:7] = 1
    with h5py.File(folder / "doubt.h5", "w") as file:
        file["entry/data"], file["entry/instrument/detector/pixel_mask"] = frames, np.zeros((100, 256), np.uint32)
    for name in ("scan_1.npy", "scan_1_dark.npy"):
        np.save(folder / name, frames[0])
    (folder / "broken.h5").write_bytes(b"this was never HDF5")
    (folder / "dark.txt").write_text("1 2 3\n")
    for snippet in SNIPPETS:
        if named := re.match(r"# (\w+\.yaml)\n", snippet.text):
            (folder / named[1]).write_text(snippet.text)
    for page in PAGES:
        for match in FENCE.finditer(page.read_text(encoding="utf-8")):
            if match[1] == "python" and (named := re.match(r"# (\w+\.py)\n", match[3])):
                (folder / named[1]).write_text(match[3])
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda it: f"{it.page.relative_to(ROOT)}:{it.line}")
def test_snippets_are_what_the_manual_says_of_them(snippet: Snippet, data: Path) -> None:
    for module in snippet.word("needs"):
        pytest.importorskip(module)
    findings = list(snippet.check(data).findings)
    errors = {item.rule for item in findings if item.severity == "error"}
    warnings = {item.rule for item in findings if item.severity == "warning"}
    assert errors == set(snippet.word("fails"))
    assert warnings == set(snippet.word("warns"))


@pytest.mark.parametrize("page", SHOWING, ids=lambda it: str(it.relative_to(ROOT)))
def test_what_is_printed_is_what_the_manual_shows(page: Path, data: Path) -> None:
    def anew(match: re.Match[str]) -> str:
        checked = Snippet(page, 0, match[2].strip(), match[3]).check(data)
        shown = show_text(checked.source, checked.findings).replace(str(data), ".")
        return f"```{match[1]}{match[2]}\n{match[3]}```\n\n```text printed\n{shown}```"

    agrees(page, PRINTED.sub(anew, page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", manual())
def test_generated_pages_are_those_of_the_code(name: str) -> None:
    agrees(DOCS / "reference" / name, manual()[name])


@pytest.mark.parametrize("page", PAGES, ids=lambda it: str(it.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http:", "https:", "#"))]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing
    for link in links:
        target, _, anchor = link.partition("#")
        assert not anchor or anchor in anchors(page.parent / target), link


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub and GitLab make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_page_is_reached_from_the_index() -> None:
    seen, ahead = set(), [DOCS / "index.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page.suffix == ".md" and page.is_relative_to(DOCS) and page not in seen:
            seen.add(page)
            links = re.findall(r"\]\(([^)\s#]+)", FENCE.sub("", page.read_text(encoding="utf-8")))
            ahead += [page.parent / link for link in links if not link.startswith("http")]
    assert seen == set(DOCS.rglob("*.md"))


def test_the_readme_has_the_two_commands_once() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("python3")] == list(COMMANDS)


NO_RULES = {
    "mem-per-cpu",
    "cpus-per-task",
    "job-name",
    "mpi-progress",
    "mpi-file",
    "best-effort",
    "run-directory",
    "site-packages",
    "at-once",
    "overflow-x",
    "overflow-y",
    "same-origin",
    "no-store",
    "no-referrer",
    "ophyd-async",
}
"""Texts of the code that look like rules."""


def rules() -> set[str]:
    """All rules in the code: hyphenated texts, and the first argument of what reports one."""
    found = set()
    for path in (ROOT / "lima2cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"[a-z]+(-[a-z]+)+", node.value) and not node.value.startswith("x-"):
                    found.add(node.value)
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in ("error", "warning", "Diagnostic", "Misfit") and isinstance(node.args[0].value, str):
                    found.add(node.args[0].value)
    return found - NO_RULES


def test_every_rule_is_in_the_manual() -> None:
    page = (DOCS / "reference" / "diagnostics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `([a-z-]+)`$", page, re.MULTILINE)) == rules()


def test_every_exit_code_is_in_the_manual() -> None:
    section = (DOCS / "reference/cli.md").read_text().partition("## Exit codes\n")[2].partition("\n## ")[0]
    codes = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for code in cell.split(", ")}
    assert codes == {*map(int, ExitCode), of_signal(15)}


def test_the_core_path_is_where_the_architecture_says() -> None:
    text = (DOCS / "explanation/architecture.md").read_text().partition("## The core path")[2].partition("\n## ")[0]
    hops = re.findall(r"\[`(\w+)`\]\(\.\./\.\./(lima2cli/[\w/]+\.py)\)", text)
    assert len(hops) >= 14
    for name, file in hops:
        tops = {getattr(node, "name", None) for node in ast.parse((ROOT / file).read_text()).body}
        assert name in tops, f"{file} has no {name}"

"""Pipelines that `validate` accepts are not rejected by `run`: sizes, users' functions, the budget, and mutants."""

from itertools import islice
from pathlib import Path

import pytest

from lima2cli.check import check_text
from lima2cli.diagnostics import MOST_MISTAKES, Findings
from lima2cli.errors import NodeMisuse
from lima2cli.job.resources import chunk_bytes
from lima2cli.nodes.user_function import UnfitFunction, check_called, check_function, module_of
from tests.compiling import compiled, plan_of
from tests.faults.apart import forked
from tests.faults.texts import mutants, try_run, try_text

HEAD = "lima2: 1\ndetector: {remu: {image: {width: 16, height: 16}}}\n"
DEEP = HEAD + "acquisition: {frames: 100000000}\n"
LARGE = HEAD.replace("width: 16, height: 16", "width: 8192, height: 8192")
SAVE = "nodes: {s: {input: data, io_hdf5: {}}}\n"


def rules(text: str) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(item.rule, item.at) for item in compiled(text)[1] if item.severity == "error"]


@pytest.mark.parametrize(
    ("text", "rule", "at"),
    [
        (DEEP + "nodes: {s: {input: data, io_hdf5: {frames_per_chunk: 10000000}}}", "chunk-too-large",
         ("nodes", "s", "io_hdf5", "frames_per_chunk")),
        (DEEP + "nodes: {s: {input: data, io_hdf5: {frames_per_chunk: 8388608}}}", "chunk-too-large",
         ("nodes", "s", "io_hdf5", "frames_per_chunk")),
        (LARGE + "nodes: {s: {input: data, io_hdf5: {frames_per_chunk: 32}}}", "chunk-too-large",
         ("nodes", "s", "io_hdf5", "frames_per_chunk")),
        (HEAD + "nodes: {b: {input: data, accumulate: {frames: 1000000000000000000}}, s: {input: b, io_hdf5: {}}}",
         "window-too-long", ("nodes", "b", "accumulate", "frames")),
        (HEAD + "nodes: {a: {input: data, accumulate: {frames: 5000}}, b: {input: a, accumulate: {frames: 5000}}}",
         "window-too-long", ("nodes", "b", "accumulate", "frames")),
        (HEAD.replace("width: 16, height: 16", "width: 65536, height: 65536") + SAVE, "image-too-large",
         ("detector", "remu")),
        (HEAD + "nodes: {p: {input: data, python: {function: 'math:sqrt', output: {shape: [90000, 90000]}}}}",
         "image-too-large", ("nodes", "p", "python", "output", "shape")),
        (LARGE + "nodes: {c: {input: data, roi_counters: {rois: {a: {ring: {x: 9, y: 9, r1: 1, r2: 1e6}}, "
         "b: {ring: {x: 9, y: 9, r1: 1, r2: 1e6}}}}}}", "regions-too-large",
         ("nodes", "c", "roi_counters", "rois", "b", "arc")),
        (HEAD + "flows: {a: {slices: {step: 999999999989}}, b: {slices: {start: 7, step: 999999999961}}}\n"
         "nodes: {j: {inputs: {a: a, b: b}, expression: {expr: a - b}}, s: {input: j, io_hdf5: {}}}",
         "edge-mismatch", ("nodes", "j", "inputs", "b")),
        (HEAD + "flows: {" + ", ".join(f"f{i}: {{}}" for i in range(257)) + "}\n", "too-many", ("flows",)),
        (HEAD + "receivers: {a: {cpus: [" + ", ".join("0" for _ in range(1025)) + "]}}\n" + SAVE, "too-many",
         ("receivers", "a", "cpus")),
        (HEAD + "metadata: {extra: {" + ", ".join(f"k{i}: 1" for i in range(1025)) + "}}\n" + SAVE, "too-many",
         ("metadata", "extra")),
    ],
)  # fmt: skip
def test_sizes(text: str, rule: str, at: tuple[str | int, ...]) -> None:
    assert (rule, at) in rules(text)


def test_the_largest_that_are_fine() -> None:
    for text in (
        DEEP + "nodes: {s: {input: data, io_hdf5: {frames_per_chunk: 8388607}}}",
        HEAD + "nodes: {b: {input: data, accumulate: {frames: 16777216}}, s: {input: b, io_hdf5: {}}}",
        HEAD + "flows: {" + ", ".join(f"f{i}: {{}}" for i in range(256)) + "}\n",
    ):
        assert rules(text) == []


def test_messages_and_their_number_have_an_end() -> None:
    (found,) = compiled(HEAD + f"acquisition: {{period: '{'9' * 300_000} ms'}}\n" + SAVE)[1]
    assert len(found.message) < 1000
    many = check_text(HEAD + f"metadata: {{title: '{'${' * 5000}'}}\n" + SAVE, "t", Path(), cores=1, environment={})
    assert [item.rule for item in many.findings][-1] == "too-many-mistakes"
    warned = Findings()
    for _ in range(2 * MOST_MISTAKES):
        warned.warning("w", "w", ())
    assert len(warned.items) == MOST_MISTAKES
    assert not warned.failed
    warned.error("e", "e", ())
    assert warned.failed


MODULE = """\
from functools import wraps
def f(frames, numbers): return frames
def g(frames, numbers, x): return frames
def h(frames, numbers, /, *, y=1, **more): return frames
def one(frames): return frames
async def later(frames, numbers): return frames
def yields(frames, numbers): yield frames
@wraps(f)
def decorated(frames): return frames
K = 5
J: list = [f]
short = lambda frames, numbers, x=1: frames
alias = g
ring = loop
loop = ring
class C:
    def __init__(self, spec, level): pass
    def __call__(self, frames, numbers): return frames
class Plain:
    def __call__(self, frames, numbers): return frames
class NotCalled:
    def __init__(self, spec): pass
class Inherits(C): pass
try:
    from fast import either
except ImportError:
    def either(frames, numbers): return frames
"""


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("f", {}, None), ("g", {"x": 1}, None), ("h", {"z": 1}, None), ("decorated", {"x": 1}, None),
        ("short", {"x": 2}, None), ("alias", {"x": 2}, None), ("C", {"level": 1}, None), ("Inherits", {}, None),
        ("either", {"q": 1}, None), ("ring", {}, None), ("wraps", {}, None),
        ("K", {}, "is not a function"), ("J", {}, "is not a function"), ("g", {}, "'x'"), ("alias", {}, "'x'"),
        ("f", {"x": 1}, "'x'"), ("f", {"frames": 1}, "'frames'"), ("one", {}, "too many"), ("later", {}, "coroutine"),
        ("yields", {}, "generator"), ("short", {"y": 1}, "'y'"), ("C", {}, "'level'"), ("C", {"l": 1}, "'level'"),
        ("Plain", {}, "__init__"), ("NotCalled", {}, "__call__"),
    ],
)  # fmt: skip
def test_functions_are_looked_at_in_their_text(name: str, params: dict[str, int], said: str | None) -> None:
    module = module_of(MODULE.encode(), "u.py")
    if said is None:
        check_called(module, name, params)
    else:
        with pytest.raises(UnfitFunction) as raised:
            check_called(module, name, params)
        assert said in raised.value.message


def test_a_parameter_that_is_misspelt_is_corrected() -> None:
    module = module_of(
        b"def f(frames, numbers, *, level=1): return frames\ndef g(frames, numbers): return frames", "u.py"
    )
    for name, help in (("f", "did you mean `level`?"), ("g", "g takes no parameters")):
        with pytest.raises(UnfitFunction) as raised:
            check_called(module, name, {"levl": 1})
        assert raised.value.help == help


def test_nothing_of_the_users_is_run(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(frames, numbers): return frames\n"
    (tmp_path / "u.py").write_text(code)
    checked = check_text(
        HEAD + "nodes: {p: {input: data, python: {function: 'u.py:f'}}, s: {input: p, io_hdf5: {}}}",
        "t.yaml", tmp_path, cores=1, environment={},
    )  # fmt: skip
    assert checked.plan is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("source", ["def f(", "\0", "(" * 100_000, "x = 1\n" * 200_000])
def test_modules_that_cannot_be_read(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        module_of(source.encode(), "u.py")


def test_modules_of_packages() -> None:
    check_function("json:loads", None)  # type: ignore[arg-type]
    check_function("numpy.linalg:norm", None)  # type: ignore[arg-type]
    check_function("math:sqrt", None, {})  # type: ignore[arg-type]
    for reference in ("json:lods", "json.nothing:f", "nothing_there:f"):
        with pytest.raises(NodeMisuse) as raised:
            check_function(reference, None)  # type: ignore[arg-type]
        assert raised.value.rule == "unknown-function"


MANY = 1000
HOSTILE = {
    "arcs": LARGE + "nodes: {c: {input: data, roi_counters: {rois: {"
    + ", ".join(f"a{i}: {{ring: {{x: 4000, y: 4000, r1: 1, r2: {4000 + i}}}}}" for i in range(100)) + "}}}}",
    "places": HEAD + "receivers: {a: {}, b: {}}\nflows: {" + ", ".join(
        f"f{i}: {{buffers: {{frames: 2, at: [{', '.join(['a.host', 'b.host'] * 40)}]}}}}" for i in range(200)) + "}\n",
    "chain": HEAD + "nodes: {n0: {input: data, mask: {image: 0}}, " + ", ".join(
        f"n{i}: {{input: n{i - 1}, background_sub: {{image: 1}}}}" for i in range(1, MANY)) + "}",
    "unknown": HEAD + "nodes: {" + ", ".join(f"no{i}: {{input: n{i}o, io_hdf5: {{}}}}" for i in range(MANY)) + "}",
    "aliases": HEAD + f"metadata: {{extra: {{a: &a '{'x' * 500_000}', b: [{', '.join(['*a'] * MANY)}]}}}}\n" + SAVE,
    "dollars": HEAD + f"metadata: {{title: '{'${' * 500_000}'}}\n" + SAVE,
    "many-arcs": LARGE + "nodes: {" + ", ".join(
        f"n{i}: {{input: data, roi_counters: {{rois: {{a: {{ring: {{x: 4000, y: 4000, r1: 1, r2: {4000 - i}}}}}}}}}}}"
        for i in range(40)) + "}",
    "many-masks": LARGE + "nodes: {n0: {input: data, mask: {image: 1}}, " + ", ".join(
        f"n{i}: {{input: n{i - 1}, mask: {{image: 1}}}}" for i in range(1, 200)) + "}",
    "many-rects": LARGE + "nodes: {m: {input: data, mask: {image: 1}}, c: {input: m, roi_counters: {rois: {"
    + ", ".join(f"r{i}: {{x: 0, y: 0, width: 8192, height: 8192}}" for i in range(100)) + "}}}}",
    "many-gains": LARGE + "nodes: {" + ", ".join(
        f"n{i}: {{input: data, gain: {{pedestal: [1, 2, 3], gain: [1, 2, 3]}}}}" for i in range(100)) + "}",
    "many-behind": LARGE + "nodes: {m: {input: data, mask: {image: 1}}, " + ", ".join(
        f"n{i}: {{input: m, background_sub: {{image: 1}}}}" for i in range(1000)) + "}",
    "image": HEAD.replace("width: 16, height: 16", "width: 65536, height: 65536") + SAVE,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_the_budget(name: str, tmp_path: Path) -> None:
    """CPU time and memory, measured by the system, with room for a machine that is slow or busy."""
    (tmp_path / "t.yaml").write_text(HOSTILE[name])
    ended = forked(["validate", "t.yaml"], tmp_path, 15)
    assert ended.code in (0, 1), ended.said[-500:]
    assert len(ended.said) < 2**20  # more is cut off
    assert ended.memory < 350 << 20


def test_a_sample_of_mutants(tmp_path: Path) -> None:
    """More: ``python -m tests.faults.texts``."""
    found = []
    for number, text in enumerate(islice(mutants(7), 60)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(try_text(text, folder, run=number < 12))
    assert [tried for tried in found if tried.problem is not None and "MiB" not in tried.problem] == []
    assert "validate" in {tried.what for tried in found}  # no run where this process had taken much memory before


def test_an_accepted_text_is_run(tmp_path: Path) -> None:
    text = Path("examples/pipelines/minimal.yaml").read_text()
    ran = try_run(text, None, tmp_path)
    assert (ran.what, ran.problem) == ("run", None)


@pytest.mark.parametrize("word", ["1", "[1]", "{}", "null", "é" * 200, '"a\\0b"'])
def test_words_of_commands_that_are_none(word: str) -> None:
    """Mutants that were internal errors: what is wrong in a command, and names that no file can have."""
    node = f'n: {{input: data, mpi: {{command: [python, "-m", {word}], output: {{dtype: float32, shape: [2]}}}}}}'
    text = HEAD + f"nodes: {{{node}, s: {{input: n, io_hdf5: {{}}}}}}\n"
    assert check_text(text, "t.yaml", Path(), cores=1, environment={}).pipeline is not None


def test_chunks_count_as_memory() -> None:
    """A chunk just below 4 GiB is one of HDF5, and no machine has twelve of them."""
    node = "nodes: {s: {input: data, io_hdf5: {frames_per_chunk: 8388607}}}"
    assert chunk_bytes(plan_of(DEEP.replace("acquisition", "receivers: 4\nacquisition") + node)) == 12 * 8388607 * 512
    assert chunk_bytes(plan_of(DEEP + "nodes: {s: {input: data, io_hdf5: {layout: common}}}")) == 0

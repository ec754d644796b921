"""The command `test`: pipelines with given frames against what is expected of them, and how differences are shown."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from lima2cli.diagnostics import Findings
from lima2cli.document import load
from lima2cli.errors import FileProblem
from lima2cli.suite import literal, load_suite, suite_schema
from lima2cli.suite.records import Sketch, Spot
from tests import ROOT
from tests.golden import agrees
from tests.running import Done, lima2

EXAMPLES = sorted((ROOT / "examples" / "tests").glob("*.test.yaml"))

PIPELINE = """\
lima2: 1
detector: {remu: {image: {width: 6, height: 4}}}
acquisition: {frames: 9}
nodes:
  dark: {input: data, background_sub: {image: 10}}
  save: {input: dark, io_hdf5: {}}
  sums: {input: dark, roi_counters: {rois: {a: {x: 0, y: 0, width: 2, height: 2}}, statistics: [sum, max]}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline, and one for temporary files that has to be empty in the end."""
    (tmp_path / "p.yaml").write_text(PIPELINE)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def ran(folder: Path, tests: str, *options: str) -> Done:
    """Run tests, a line each, of the pipeline in the folder."""
    lines = "".join(f"  {line}\n" for line in tests.strip().splitlines())
    (folder / "p.test.yaml").write_text(f"lima2: 1\npipeline: p.yaml\ntests:\n{lines}")
    done = lima2("test", "p.test.yaml", *options, cwd=folder)
    assert list((folder / "temporary").iterdir()) == []
    assert not (folder / "runs").exists()
    return done


def messages(done: Done) -> list[str]:
    return [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("error[test-")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_pass(path: Path, tmp_path: Path) -> None:
    done = lima2("test", str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []
    assert path.read_text().startswith("# yaml-language-server: $schema=../../schemas/test-1.schema.json\n# ")


def test_the_published_schema_is_the_one_of_the_code(tmp_path: Path) -> None:
    agrees(ROOT / "schemas" / "test-1.schema.json", suite_schema())
    assert lima2("schema", "test", cwd=tmp_path).stdout == suite_schema()
    validator = Draft202012Validator(json.loads(suite_schema()))
    for path in EXAMPLES:
        document = load(path.read_text(), str(path), Findings(), environment={})
        assert document is not None
        validator.validate(document.data)
    assert list(validator.iter_errors({"lima2": 1, "tests": {"a": {"expct": {}}}}))


def test_all_that_can_be_expected(folder: Path) -> None:
    np.save(folder / "all.npy", np.stack([np.full((4, 6), 2.0), np.full((4, 6), 5.0)]).astype("f4"))
    done = ran(
        folder,
        """
flat:
  frames: [12, 15]
  expect:
    exit: 0
    state: complete
    flows: {data: {expected: 2, received: 2, lost: 0, dropped: 0, missing: 0, missing_frames: []}}
    frames:
      save:
        {saved: 2, vetoed: 0, dropped: 0, lost: 0, numbers: [0, 1], shape: [4, 6], dtype: float32, masked: 0,
         sum: [48, 120], mean: [2, 5], min: [2, 5], max: [2, 5], equals: all.npy,
         pixels: [{x: 5, y: 3, frame: 1, value: 5}]}
    tables: {sums: {rows: 2, numbers: [0, 1], columns: {a_sum: [8, 20], a_max: [2, 5]}}}
    files: ["p_save_master.h5", "*.json"]
""",
    )
    assert done.returncode == 0, done.stdout
    first, last = done.stdout.splitlines()
    assert first.startswith("p.test.yaml::flat  passed  ")
    assert last.startswith("1 passed in ")


def test_each_difference_is_shown_at_its_expectation(folder: Path) -> None:
    done = ran(
        folder,
        """
wrong:
  frames: [12, 15]
  expect:
    flows: {data: {received: 3, missing_frames: [1]}, dota: {}}
    frames:
      save: {saved: 1, numbers: [0], shape: [6, 4], dtype: uint16, masked: 1, sum: [48, 121], mean: 2, image: [[1]]}
      sav: {}
    tables: {sums: {rows: 1, numbers: [1], columns: {a_sum: [8, 21], a_mx: 0, a_max: [1]}}}
    files: ["*.cbf"]
    message: disk
""",
    )
    assert done.returncode == 1
    assert messages(done) == [
        "expected 3 received frames, got 2",
        "expected that frames [1] are not received, got []",
        "there is no flow `dota`",
        "expected 1 saved frames, got 2",
        "expected the frames [0], got [0, 1]",
        "expected frames of shape [6, 4], got [4, 6]",
        "expected uint16, got float32",
        "masked pixels of frame 0: expected 1, got 0",
        "masked pixels of frame 1: expected 1, got 0",
        "sum of frame 1: expected 121, got 120",
        "mean of frame 1: expected 2, got 5",
        "expected the shape [1, 1], got [4, 6]",
        "there is no node that saves frames `sav`",
        "expected 1 rows, got 2",
        "expected rows of the frames [1], got [0, 1]",
        "a_sum of frame 1: expected 21, got 20",
        "there is no column of sums named `a_mx`",
        "a_max: expected 1 values, got 2",
        "the run made no file `*.cbf`",
        "expected the message `disk`",
    ]
    assert re.search(r"\n +--> p.test.yaml:9:\d+  at /tests/wrong/expect/frames/save/sum/1\n", done.stdout)
    assert "= help: did you mean `a_max`?" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 failed, 0 passed in ")


def test_pixels_that_differ_are_listed(folder: Path) -> None:
    image = [[2] * 6 for _ in range(4)]
    image[1][3] = 7
    done = ran(folder, f"a: {{frames: [12], expect: {{frames: {{save: {{image: {image}, tolerance: 1}}}}}}}}")
    assert messages(done) == ["pixel (3, 1) of frame 0: expected 7, got 2"]
    done = ran(folder, f"a: {{frames: [12], expect: {{frames: {{save: {{image: {image}, tolerance: 5}}}}}}}}")
    assert done.returncode == 0
    pixels = "[{x: 6, y: 0, value: 1}, {x: 0, y: 0, frame: 4, value: 1}]"
    done = ran(folder, f"a: {{frames: [17], expect: {{frames: {{save: {{pixels: {pixels}, equals: none.npy}}}}}}}}")
    assert messages(done)[:2] == ["pixel (6, 0) is outside of 6 x 4", "frame 4 is not saved"]
    assert "there is no file none.npy" in done.stdout


def test_diagnostics_that_are_expected(folder: Path) -> None:
    done = ran(
        folder,
        """
reported: {set: {nodes.save.input: drk}, expect: {diagnostics: [{rule: unknown-input, at: /nodes/save/input}]}}
elsewhere: {set: {nodes.save.input: drk}, expect: {diagnostics: [{rule: unknown-input, at: /nodes/dark/input}]}}
nothing: {expect: {diagnostics: [{rule: idle-receiver}]}}
warned:
  set: {receivers: 2, flows: {data: {buffers: {at: [receiver0.host]}}}}
  expect: {diagnostics: [{rule: idle-receiver}]}
both:
  set: {nodes.save.input: drk}
  expect: {exit: 0, diagnostics: [{rule: unknown-input}], frames: {save: {saved: 1}}}
mistaken: {set: {nodes.save.input: drk}}
""",
    )
    words = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("p.test.yaml::")]
    assert words == ["passed", "FAILED", "FAILED", "passed", "FAILED", "FAILED"]
    assert "expected that `unknown-input` is reported at /nodes/dark/input" in messages(done)
    assert "= note: reported: unknown-input at /nodes/save/input" in done.stdout
    assert "= note: nothing is reported" in done.stdout
    assert "nothing is run, since the pipeline has the mistakes that are expected" in messages(done)
    assert "expected exit code 0, got 1" in messages(done)
    assert "the pipeline has mistakes that are not expected: unknown-input" in messages(done)
    assert "error[unknown-input]: `save` reads `drk`" in done.stdout
    assert re.search(r"\n +--> p.test.yaml:13:\d+  at /nodes/save/input\n", done.stdout)


def test_runs_that_end_otherwise(folder: Path) -> None:
    (folder / "bad.py").write_text("def f(frames, numbers):\n    raise ValueError('no cake')\n")
    node = "nodes.bad: {input: data, python: {function: 'bad.py:f', output: {dtype: uint16, shape: [4, 6]}}}"
    done = ran(
        folder,
        f"""
fails:
  set: {{{node}, nodes.kept: {{input: bad, io_hdf5: {{}}}}}}
  expect: {{exit: 10, state: failed, message: no cake}}
surprise: {{set: {{{node}, nodes.kept: {{input: bad, io_hdf5: {{}}}}}}}}
other: {{frames: [1], expect: {{exit: 11, state: stopped}}}}
unfit: {{set: {{receivers: {{r: {{memspaces: {{m: {{host: {{size: 900 TiB}}}}}}}}}}}}, expect: {{exit: 12}}}}
""",
    )
    words = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("p.test.yaml::")]
    assert words == ["passed", "FAILED", "FAILED", "passed"], done.stdout
    assert messages(done) == [
        "expected exit code 0, got 10",
        "expected exit code 11, got 0",
        "expected that the run is stopped, and it is complete",
    ]
    assert "no cake" in done.stdout


def test_what_the_detector_sees(folder: Path) -> None:
    np.save(folder / "two.npy", np.arange(48, dtype="u2").reshape(2, 4, 6) + 10)
    (folder / "lab.yaml").write_text("nodes: {dark: {background_sub: {image: 0}}}\n")
    (folder / "eiger.yaml").write_text(
        'lima2: 1\ndetector: {dectris: {stream: "tcp://127.0.0.1:1", image: {width: 4, height: 2}, '
        "datasets: {t: {dtype: uint16}}}}\nacquisition: {frames: 9}\nnodes: {save: {input: t, io_hdf5: {}}}\n"
    )
    done = ran(
        folder,
        """
scene: {scene: {counter: {}}, set: {acquisition.frames: 2}, expect: {frames: {save: {max: [13, 7932]}}}}
recorded: {recorded: two.npy, set: {acquisition.frames: 2}, expect: {frames: {save: {max: [23, 47]}}}}
drawn: {frames: [{fill: 10, pixels: [{x: 5, y: 0, value: 30}]}], expect: {frames: {save: {sum: 20}}}}
profile: {profile: lab.yaml, frames: [30], expect: {frames: {save: {sum: 720}}}}
hardware: {pipeline: eiger.yaml, frames: [1, 2, 3], expect: {frames: {save: {sum: [8, 16, 24]}}}}
set wins: {frames: [11, 12], set: {acquisition.frames: 3}, expect: {frames: {save: {max: [1, 2, 1]}}}}
""",
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("a: {scene: {counter: {}}, frames: [1]}", "error[test-source]: `scene` and `frames` exclude each other"),
        ("a: {expct: {}}", "did you mean `expect`?"),
        ("a: {expect: {frames: {save: {summ: 1}}}}", "did you mean `sum`?"),
        ("a: {scene: {rings: {sed: 1}}}", "did you mean `seed`?"),
        ("'a:b': {}", "`a:b` is not a name in one line"),
        ("a: {pipeline: gone.yaml}", "error[file-unreadable]: cannot read gone.yaml"),
        ("a: {profile: [gone.yaml]}", "error[file-unreadable]: cannot read gone.yaml"),
        ("a: {set: {acquisition.frames: 0}}", "error[test-endless]: the run of this test has no end"),
        ("a: {set: {acquisition.trigger: software}}", "error[test-endless]: the run of this test waits for triggers"),
        ("a: {set: {acquisition.frames.x: 1}}", "error[set-path]: `x` leads into a number"),
        ("a: {frames: [[[1, 2], [3]]]}", "error[test-frames]: frame 0 has 2 x 2 pixels, and the detector 6 x 4"),
        ("a: {frames: [{pixels: [{x: 6, y: 0, value: 1}]}]}", "there is no pixel (6, 0) in 6 x 4"),
        ("a: {frames: [70000]}", "which dataset data (uint16) cannot hold"),
        ("a: {recorded: gone.npy}", "error[file-missing]"),
        ("a: [", "error[yaml-syntax]"),
    ],
)
def test_mistakes_in_a_file_of_tests(folder: Path, test: str, said: str) -> None:
    done = ran(folder, test)
    assert (done.returncode, said in done.stdout) == (1, True), done.stdout


def test_a_test_needs_a_pipeline() -> None:
    suite = load_suite("lima2: 1\ntests: {a: {}}\n", "x.test.yaml", {})
    assert [(item.rule, item.at) for item in suite.findings] == [("missing-key", ("tests", "a"))]


def test_validate_checks_files_of_tests(folder: Path) -> None:
    assert ran(folder, "a: {frames: [1]}").returncode == 0
    assert lima2("validate", "p.test.yaml", "p.yaml", cwd=folder).returncode == 0
    (folder / "p.test.yaml").write_text("lima2: 1\npipeline: p.yaml\ntests: {a: {fames: [1]}}\n")
    done = lima2("validate", "p.test.yaml", "--format", "concise", cwd=folder)
    assert (done.returncode, done.stdout.startswith("p.test.yaml:3:13: error[unknown-key]")) == (1, True)


def test_files_of_memspaces_are_removed_too(folder: Path) -> None:
    done = ran(folder, "a: {set: {receivers: {r: {memspaces: {m: {file: {path: kept.mem}}}}}}, frames: [1]}")
    assert done.returncode == 0, done.stdout
    assert not list(folder.glob("kept*"))


def test_files_are_found_and_chosen(folder: Path) -> None:
    (folder / "below").mkdir()
    for name in ("b.test.yaml", "a.test.yaml"):
        (folder / "below" / name).write_text(
            "lima2: 1\npipeline: ../p.yaml\ntests: {one: {frames: [1]}, two: {frames: [1]}}\n"
        )
    done = lima2("test", "-k", "two", cwd=folder)
    labels = [line.split("  ")[0] for line in done.stdout.splitlines() if "::" in line]
    assert (done.returncode, labels) == (0, ["below/a.test.yaml::two", "below/b.test.yaml::two"])
    for arguments, said in ((["none"], "there is no file none"), (["temporary"], "in temporary"), (["-k", "zz"], "zz")):
        done = lima2("test", *arguments, cwd=folder)
        assert (done.returncode, said in done.stderr) == (2, True)


def test_results_as_junit(folder: Path) -> None:
    tests = "good: {frames: [1]}\nbad: {frames: [12], expect: {frames: {save: {sum: 3}}}}"
    done = ran(folder, tests, "--junit", "out.xml")
    assert done.returncode == 1
    (suite,) = ElementTree.parse(folder / "out.xml").getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("p.test.yaml", "2", "1")
    good, bad = suite
    assert (good.get("classname"), good.get("name"), len(good)) == ("p.test.yaml", "good", 0)
    (failure,) = bad
    assert failure.get("message") == "sum of frame 0: expected 3, got 48"
    assert "--> p.test.yaml:5" in str(failure.text)
    assert ran(folder, tests, "--junit", "p.test.yaml").returncode == 12
    assert "tests:" in (folder / "p.test.yaml").read_text()


@pytest.mark.parametrize(
    ("frames", "dtype"),
    [
        ([1], "u1"),
        ([-1], "i1"),
        ([300], "u2"),
        ([1.5], "f4"),
        ([0.1], "f8"),
        ([float("nan")], "f4"),
        ([1, 70000], "u4"),
    ],
)
def test_frames_have_the_smallest_dtype(frames: list[Any], dtype: str) -> None:
    made = literal(frames, (2, 3), ())
    assert (made.dtype, made.shape) == (np.dtype(dtype), (len(frames), 2, 3))
    np.testing.assert_array_equal(made, np.array([np.full((2, 3), frame) for frame in frames]))


def test_frames_that_are_drawn() -> None:
    drawn = literal([Sketch(fill=2, pixels=(Spot(x=2, y=0, value=7),)), ((1, 2, 3), (4, 5, 6))], (2, 3), ())
    assert drawn.tolist() == [[[2, 2, 7], [2, 2, 2]], [[1, 2, 3], [4, 5, 6]]]
    with pytest.raises(FileProblem, match=r"frame 0 has 2 x 1 pixels"):
        literal([((1, 2),)], (2, 3), ())


def test_mistakes_are_those_of_a_file_of_tests(folder: Path) -> None:
    done = lima2("test", "p.yaml", cwd=folder)
    assert done.returncode == 1
    assert "the file of tests lacks the key `tests`" in done.stdout
    assert "`detector` is not a key of the file of tests" in done.stdout
    assert "of the pipeline" not in done.stdout


def test_a_key_that_is_there_is_what_was_meant(folder: Path) -> None:
    done = lima2("validate", "p.yaml", "--set", "acquisition.frame=5", cwd=folder)
    assert done.returncode == 1
    assert "`frame` is not a key of `acquisition`" in done.stdout
    assert "did you mean `frames`?" in done.stdout

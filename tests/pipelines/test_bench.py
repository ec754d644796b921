"""`lima2 doctor --bench`: the machine's limits, and what lima2 reaches of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lima2cli.doctor import bench
from tests.running import lima2, needs_mpi

FOUND = [bench.Ratio("sum", "sum of whole frames", 4e9, 3e9, 0.75), bench.Ratio("save bslz4", "saved", 2e9, 1e9, 0.5)]


def test_a_case_has_the_median_of_the_ratios_of_neighbours() -> None:
    limits, ours = iter([9.0, 10.0, 20.0, 40.0]), iter([9.0, 8.0, 10.0, 36.0])
    case = bench.Case("one", "work", lambda: next(limits), lambda: next(ours))
    assert bench.compared(case, 3) == bench.Ratio("one", "work", 20.0, 10.0, 0.8)


def test_each_case_does_its_work(tmp_path: Path) -> None:
    bench.load_libraries()
    for case in (*bench.kernel_cases(tmp_path, side=96), *bench.saving_cases(tmp_path, side=512)):
        assert case.limit() > 0, case.name
        assert case.ours() > 0, case.name
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"dark.npy", "flat.npy", "bad.npy", "even.npy"}, "frames that were saved are removed"


@needs_mpi
@pytest.mark.mpi
def test_transfers_are_held_against_bare_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIDES", {32: 200, 256: 50})
    found = list(bench.transfers(tmp_path, 1))
    assert [one.name for one in found] == ["transfer 32", "transfer 256", "rectangle 32", "rectangle 256"]
    assert all(one.limit > 0 and one.ours > 0 and one.ratio == one.ours / one.limit for one in found)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_and_writes_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(folder: Path) -> Iterator[bench.Ratio]:
        yield from FOUND

    monkeypatch.setattr(bench, "measure", measure)
    ran = lima2("doctor", "--bench", "-o", "limits.json", cwd=tmp_path)
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[1:] == [
        "sum              4.00 GB/s   3.00 GB/s    0.75  sum of whole frames",
        "save bslz4       2.00 GB/s   1.00 GB/s    0.50  saved",
    ]
    written = json.loads((tmp_path / "limits.json").read_text())
    assert written == json.loads(lima2("doctor", "--bench", "--format", "json", cwd=tmp_path).stdout)
    assert written["cases"][0] == {
        "name": "sum",
        "work": "sum of whole frames",
        "limit_bytes_per_s": 4e9,
        "lima2_bytes_per_s": 3e9,
        "ratio": 0.75,
    }
    assert written["machine"]["processor"]
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine")
    refused = lima2("doctor", "--bench", "-o", "mine.yaml", cwd=tmp_path)
    assert (refused.returncode, mine.read_text()) == (12, "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--bench", "some.yaml"), "takes no FILE"), (("-o", "limits.json"), "-o goes with --bench")],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    ran = lima2("doctor", *options, cwd=tmp_path)
    assert ran.returncode == 2
    assert message in ran.stderr

"""Damage is found: stored data have checksums, which `inspect --verify` and readers hold them against."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from lima2cli.errors import FileProblem
from lima2cli.files.appending import level, reopenable
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.inputs.stacks import FileStore
from tests.artefacts_samples import START_NS, detector_group, make_block, make_channel, write_all
from tests.faults.bits import COMPRESSIONS, Piece, anywhere, found_of, pieces, pipeline, told
from tests.running import TRANSPORTS, Ran, inspect_run, lima2, run

KINDS = [f"{kind}_{name}" for name in COMPRESSIONS for kind in ("dense", "sparse", "virtual")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run with channels of all kinds."""
    done = run(pipeline(), tmp_path_factory.mktemp("bits"), "inline")
    assert done.code == 0, done.output
    return done


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_has_checksums_and_is_sound(tmp_path: Path, transport: str) -> None:
    done = run(pipeline(("bslz4", "none")), tmp_path, transport)
    found = inspect_run(str(done.directory), verify=True)
    assert (found["problems"], found["warnings"]) == ([], [])
    assert found_of(done.directory, "common", 2, random.Random(1)) == (2, 2)


@pytest.mark.parametrize("node", [*KINDS, "common", "table"])
def test_a_flipped_bit_is_found_and_its_frames_are_named(ran: Ran, node: str) -> None:
    assert found_of(ran.directory, node, 3, random.Random(node))[0] == 3


@pytest.mark.parametrize("node", ["dense_bslz4", "sparse_none", "virtual_none", "common"])
def test_a_flipped_bit_in_what_is_told_of_rows_is_found(ran: Ran, node: str) -> None:
    names = {piece.path.name.rpartition("_")[2] for piece in told(ran.directory, node)}
    assert "master.h5" in names
    assert found_of(ran.directory, node, 6, random.Random(node), told)[0] == 6


def test_room_for_checksums_that_were_never_written_is_no_damage(ran: Ran, tmp_path: Path) -> None:
    """As a power failure may leave it: longer than what was written."""
    name = "bits_dense_bslz4_0_00000.h5"
    shutil.copy(ran.directory / name, tmp_path)
    with h5py.File(tmp_path / name, "r+") as file:
        values = detector_group(file)["checksum/data"]
        length = len(values)
        values.resize((length - 2,))
        values.resize((length,))
        assert values[-2:].tolist() == [0, 0]
    found = inspect_run(str(tmp_path), verify=True)
    assert not any("damaged" in problem for problem in found["problems"])
    assert any("frames have no checksum" in warning for warning in found["warnings"])


@pytest.mark.parametrize("column", ["frame_number", "frame_time", "frame_status", "frame_pixels"])
@pytest.mark.parametrize("node", ["dense_bslz4", "sparse_none", "common"])
def test_each_column_of_a_master_is_covered(ran: Ran, node: str, column: str, tmp_path: Path) -> None:
    """By one flipped bit of the first value, of which the file and the dataset are named."""
    path = Path(shutil.copy(ran.directory / f"bits_{node}_master.h5", tmp_path))
    with h5py.File(path) as file:
        if column not in detector_group(file):
            assert (column == "frame_pixels") == (node != "sparse_none")
            return
        offset = detector_group(file)[column].id.get_offset()
    Piece(path, offset, 1, frozenset()).flip(0, 0)
    problems = inspect_run(str(tmp_path), verify=True)["problems"]
    assert any(path.name in it and f"the bytes of {column} are not those that were written" in it for it in problems)


@pytest.mark.parametrize("node", ["dense_bslz4", "sparse_none", "virtual_none", "common", "table"])
def test_bits_anywhere_kill_nobody_and_hide_nothing(ran: Ran, node: str) -> None:
    assert anywhere(ran.directory, node, 4, random.Random(node))[1] == []


def test_a_table_that_cannot_be_read_hides_no_other_file(ran: Ran, tmp_path: Path) -> None:
    for name in ("bits_table.h5", "bits_dense_none_master.h5"):
        shutil.copy(ran.directory / name, tmp_path)
    with h5py.File(tmp_path / "bits_table.h5", "r+") as file:
        del file["entry_0000/measurement/frame_number"]
        file["entry_0000/measurement/frame_number"] = h5py.Empty("u8")
    found = inspect_run(str(tmp_path), verify=True)
    assert "dense_none" in found["channels"]
    assert any(problem.startswith("bits_table.h5: it, or a file that belongs to it") for problem in found["problems"])


def test_values_are_those_of_the_specification(tmp_path: Path) -> None:
    channel = make_channel(compression="bslz4", frames_per_chunk=4)
    write_all(channel, str(tmp_path), range(10))
    with h5py.File(tmp_path / "maze_save_0_00000.h5") as file:
        detector = detector_group(file)
        group = detector["checksum"]
        assert group.attrs["algorithm"] == b"XXH3-64"
        assert group["data"].attrs["rows"] == 4
        stored = [detector["data"].id.read_direct_chunk((row, 0, 0))[1] for row in (0, 4, 8)]
        assert group["data"][:].tolist() == [xxhash.xxh3_64_intdigest(chunk) for chunk in stored]
    assert xxhash.xxh3_64_intdigest(b"") == 0x2D06800538D394C2  # the test vector of the algorithm


@pytest.mark.parametrize(("compression", "per_file"), [("bslz4", 0), ("none", 7)])
def test_chunks_that_are_written_again_are_not_taken_for_damaged(
    tmp_path: Path, compression: str, per_file: int
) -> None:
    """At any moment, in what a kill would leave there, and after recovery."""
    channel = make_channel(compression=compression, frames_per_chunk=4, frames_per_file=per_file)
    directory, copies = tmp_path / "run", []
    directory.mkdir()
    writer = FrameWriter(channel, str(directory), 0, START_NS)
    for number in range(11):
        writer.commit(writer.stage(make_block(channel, [number])))
        if number % 3 != 1:
            writer.flush()
        copies.append(tmp_path / f"killed{number}")
        shutil.copytree(directory, copies[-1])
    writer.close()
    for copy in (directory, *copies):
        for path in sorted(copy.glob("*.h5")):
            reopenable(str(path))
            level(str(path))
        problems = inspect_run(str(copy), verify=True)["problems"]
        assert [problem for problem in problems if "master" not in problem] == []
    with h5py.File(directory / "maze_save_0_00000.h5") as file:
        assert len(detector_group(file)["checksum/data"]) == (2 if per_file else 3)


def test_a_chunk_that_recovery_cuts_loses_its_checksum(tmp_path: Path) -> None:
    write_all(make_channel(compression="gzip", frames_per_chunk=4), str(tmp_path), range(8))
    path = tmp_path / "maze_save_0_00000.h5"
    with h5py.File(path, "r+") as file:
        detector_group(file)["frame_number"].resize((6,))
    level(str(path))
    with h5py.File(path) as file:
        assert len(detector_group(file)["checksum/data"]) == 1
    found = inspect_run(str(tmp_path), verify=True)
    assert [problem for problem in found["problems"] if "master" not in problem] == []
    assert found["warnings"][0].startswith("save: 2 frames have no checksum")


def test_without_checksums_nothing_tells_and_that_is_said(tmp_path: Path) -> None:
    ran = run(pipeline(("bslz4",), "off"), tmp_path, "inline")
    assert ran.code == 0, ran.output
    with h5py.File(ran.directory / "bits_dense_bslz4_0_00000.h5") as file:
        assert "checksum" not in file["entry_0000/instrument/remu"]
    done = lima2("inspect", str(ran.directory), "--verify", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: dense_bslz4: 50 frames have no checksum" in done.stdout


@pytest.mark.parametrize("compression", ["bslz4", "lz4", "gzip", "zstd", "blosc"])
def test_old_files_are_read_by_a_process_that_may_die(tmp_path: Path, compression: str) -> None:
    """Every byte of two chunks is overwritten: the frames of both are named, whatever becomes of the reader."""
    channel = make_channel(compression=compression, frames_per_chunk=2, checksum=False, height=64, width=64)
    write_all(channel, str(tmp_path), range(10))
    path = tmp_path / "maze_save_0_00000.h5"
    with h5py.File(path) as file:
        data = detector_group(file)["data"].id
        chunks = [data.get_chunk_info(index) for index in (1, 3)]
    with path.open("r+b") as raw:
        for chunk in chunks:
            raw.seek(chunk.byte_offset)
            raw.write(b"\xff" * chunk.size)
    told = " ".join(inspect_run(str(tmp_path), verify=True)["problems"])
    assert "2-3" in told
    assert "6, 7" in told
    assert "cannot be read" in told


def test_a_reader_that_dies_is_said_and_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lima2cli.files import reading_apart

    script = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    for row in range(asked['first'], asked['last'], asked['step']):\n"
        "        print(f'at {row}', flush=True)\n"
        "        if row in (2, 5): os.abort()\n"
        "        if row == 7: print('bad 7', flush=True)\n"
        "    print('end', flush=True)\n"
    )
    (tmp_path / "dies.py").write_text(script)
    monkeypatch.setattr(reading_apart, "COMMAND", [reading_apart.sys.executable, str(tmp_path / "dies.py")])
    with reading_apart.ReaderApart() as reader:
        found = list(reader.unreadable("x.h5", "data", 0, 9, 1))
    assert [row for row, _ in found] == [2, 5, 7]
    assert ["died" in why for _, why in found] == [True, True, False]


def _flip(piece: Piece) -> None:
    piece.flip(piece.size // 2, 3)


def _lima2_file(ran: Ran, node: str) -> str:
    return str(ran.directory / f"bits_{node}_master.h5")


@pytest.mark.parametrize("node", ["dense_bslz4", "dense_none", "virtual_bslz4", "common"])
@pytest.mark.parametrize("skip", [False, True])
def test_replay_finds_damage(ran: Ran, tmp_path: Path, node: str, skip: bool) -> None:
    piece = next(it for it in pieces(ran.directory, node) if 20 in it.frames)
    text = f"""
lima2: 1
detector: {{replay: {{file: {_lima2_file(ran, node)}, incomplete: {"skip" if skip else "error"}}}}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
"""
    _flip(piece)
    try:
        again = run(text, tmp_path, "inline")
    finally:
        _flip(piece)
    flow = json.loads((again.directory / "summary.json").read_text())["flows"]["data"]
    if skip:
        assert again.code == 0, again.output
        assert flow["missing"] == len(piece.frames)
        missing = {n for a, b, step in flow["missing_frames"] for n in range(a, b + 1, step)}
        assert missing == piece.frames
        assert "are not those that were written" in again.output
    else:
        assert again.code == 10
        assert "are not those that were written" in again.output


def test_a_copy_that_was_packed_anew_has_no_checksums(ran: Ran, tmp_path: Path) -> None:
    """Other programs copy the group along, whatever they store."""
    with h5py.File(ran.directory / "bits_dense_bslz4_0_00000.h5") as file, h5py.File(tmp_path / "c.h5", "w") as copy:
        detector = file["entry_0000/instrument/remu"]
        made = copy.create_group("d")
        made.create_dataset("data", data=detector["data"][:], chunks=detector["data"].chunks)
        file.copy(detector["checksum"], made)
        frames = detector["data"][:]
    with FileStore(tmp_path) as store:
        np.testing.assert_array_equal(store.frames("c.h5::/d/data").read(range(len(frames))), frames)


def test_calibrations_are_held_against_their_checksums(tmp_path: Path) -> None:
    write_all(make_channel(compression="bslz4", frames_per_chunk=2, selected=4), str(tmp_path), range(4))
    path = tmp_path / "maze_save_0_00000.h5"
    with h5py.File(path) as file:
        chunk: Any = detector_group(file)["data"].id.get_chunk_info(1)
    Piece(path, chunk.byte_offset, chunk.size, frozenset()).flip(chunk.size - 1, 0)
    with FileStore(tmp_path) as store:
        reader = store.frames(path.name)
        assert len(reader.read([0, 1])) == 2
        with pytest.raises(FileProblem, match="frames 2 to 3 are not those that were written"):
            reader.read(range(4))

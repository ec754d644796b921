"""Quantities: units in other words, values that are implausible, and how figures are printed."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.declare import Quantity
from lima2cli.declare.wording import check_quantity
from lima2cli.units import (
    UNITS,
    count_text,
    frames_text,
    hertz_text,
    in_units,
    parse,
    rate_text,
    seconds_text,
    size_text,
    volume_text,
)
from tests.compiling import compiled


@pytest.mark.parametrize(
    ("text", "quantity", "meant"),
    [
        ("12,4 keV", "eV", "12.4 keV"),
        ("0,172 mm", "metres", "0.172 mm"),
        ("12 KEV", "eV", "12 keV"),
        ("5 mev", "eV", "5 MeV"),
        ("2 GeV", "eV", "2000 MeV"),
        ("1 khz", "hertz", "1 kHz"),
        ("1 Ghz", "hertz", "1000 MHz"),
        ("500 mHz", "hertz", "0.5 Hz"),
        ("10 fps", "hertz", "10 Hz"),
        ("1e3Khz", "hertz", "1e3 kHz"),
        ("1 000 Hz", "hertz", "1000 Hz"),
        ("1,000,000 Hz", "hertz", "1000000 Hz"),
        ("1.000,5 Hz", "hertz", "1000.5 Hz"),
        ("16 mib", "bytes", "16 MiB"),
        ("16M", "bytes", "16 MiB"),
        ("16 Bytes", "bytes", "16 B"),
        ("172 micron", "metres", "172 um"),
        ("1.5 Angstrom", "metres", "1.5 Å"),
        ("7 km", "metres", "7000 m"),
        ("um 172", "metres", "172 um"),
        ("172 um.", "metres", "172 um"),
        ("172", "metres", "172 m"),
        ("5 sec", "seconds", "5 s"),
        ("3 days", "seconds", "72 h"),
        ("1 ms", "hertz", "1 kHz"),
        ("1 kHz", "seconds", "1 ms"),
        ("1 MHZ", "seconds", "1 us"),
        ("1 Å", "eV", "12.3984 keV"),
        ("32 B", "bits", "256 bit"),
    ],
)
def test_units_in_other_words(text: str, quantity: str, meant: str) -> None:
    shape = Quantity(quantity, above=0)
    found = check_quantity(text, shape, ())
    assert found.rule == "bad-quantity"
    assert found.help is not None
    assert f"`{meant}`" in found.help
    shape.parse(meant)


@pytest.mark.parametrize("text", ["5 bananas", "0.5.5 m", "metres", "", "5 keV 3", "--3 m"])
def test_nothing_is_proposed_for_what_is_no_quantity(text: str) -> None:
    assert check_quantity(text, Quantity("metres"), ()).help is None


def test_a_number_that_can_be_read_twice() -> None:
    help = check_quantity("1,000 Hz", Quantity("hertz"), ()).help
    assert help == "did you mean `1000 Hz`, or `1.000 Hz`?"


def test_a_unit_of_another_quantity_is_named() -> None:
    help = check_quantity("3 mm", Quantity("seconds"), ()).help
    assert help == "mm is a unit of a length, a time is needed"


@given(st.text(max_size=20), st.sampled_from(sorted(UNITS)))
def test_every_proposal_is_a_quantity(text: str, quantity: str) -> None:
    shape = Quantity(quantity)
    try:
        shape.parse(text)
    except ValueError:
        for proposal in re.findall("`([^`]*)`", str(check_quantity(text, shape, ()).help)):
            shape.parse(proposal)


def test_a_comma_in_a_map_of_one_line() -> None:
    _, findings = compiled("lima2: 1\nmetadata: {photon_energy: 12,4 keV}\ndetector: {replay: {file: a.npy}}\n")
    (found,) = [item for item in findings if item.rule == "unknown-key"]
    assert found.help == "a comma ends the value before it: write decimals with a point"


HEAD = "lima2: 1\ndetector: {remu: {image: {width: 64, height: 48}DETECTOR}}\n"


def doubted(more: str, detector: str = "") -> list[tuple[Any, str | None]]:
    text = HEAD.replace("DETECTOR", detector) + more + "\nnodes: {s: {input: data, io_hdf5: {}}}\n"
    plan, findings = compiled(text)
    assert plan is not None
    assert {(item.rule, item.severity) for item in findings} <= {("implausible", "warning")}
    return [(item.at[-1], item.help) for item in findings]


@pytest.mark.parametrize(
    ("more", "key", "meant"),
    [
        ("metadata: {photon_energy: 20}", "photon_energy", ["20 keV"]),
        ("metadata: {photon_energy: 20 eV}", "photon_energy", ["20 keV"]),
        ("metadata: {photon_energy: 12400 keV}", "photon_energy", ["12400 eV"]),
        ("metadata: {distance: 250 m}", "distance", ["250 mm"]),
        ("metadata: {distance: 300}", "distance", ["300 mm"]),
        ("acquisition: {period: 1000}", "period", ["1000 ms", "1000 us"]),
        ("acquisition: {period: 1000, exposure: 500}", "exposure", ["500 ms", "500 us"]),
        ("acquisition: {rate: 500 MHz}", "rate", ["500 kHz", "500 Hz"]),
        ("acquisition: {timeout: 10000}", "timeout", ["10000 ms", "10000 us"]),
    ],
)
def test_implausible_values_are_doubted(more: str, key: str, meant: list[str]) -> None:
    found = dict(doubted(more))
    assert found[key] == f"did you mean {', or '.join(f'`{text}`' for text in meant)}?"


@pytest.mark.parametrize(
    "more",
    [
        "metadata: {photon_energy: 12.4 keV, distance: 0.3}",
        "metadata: {photon_energy: 250 eV, distance: 35 m, beam_center: {x: -60, y: 90}}",
        "acquisition: {period: 1000 s, exposure: 900 s, timeout: 2 h}",
        "acquisition: {period: 0.001, exposure: 0.0009}",
    ],
)
def test_plausible_values_are_not(more: str) -> None:
    assert doubted(more) == []


@pytest.mark.parametrize(
    ("written", "key"),
    [("75", "pixel_size"), ("75 m", "pixel_size"), ("{x: 75 um, y: 75}", "y"), ("{x: 172 mm, y: 75 um}", "x")],
)
def test_implausible_pixels(written: str, key: str) -> None:
    ((at, help),) = doubted("", f", pixel_size: {written}")
    assert at == key
    assert help is not None
    assert " um`" in help


def test_a_beam_far_outside() -> None:
    found = doubted("metadata: {beam_center: {x: 2400, y: -49}}", ", pixel_size: 75 um")
    assert found == [("x", "2400 um would be `32`"), ("y", None)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size_text(48 << 20), "48 MiB"),
        (size_text(500_000), "500 000 bytes"),
        (size_text(11_499_519 << 20), "10.97 TiB"),
        (size_text(0), "0 bytes"),
        (size_text((1 << 40) - 1), "1 TiB"),
        (size_text(None), "?"),
        (volume_text(2_029_200), "1.94 MiB"),
        (volume_text(1000), "1000 bytes"),
        (volume_text(0), "0 bytes"),
        (volume_text(None), "?"),
        (seconds_text(2.59), "2.59 s"),
        (seconds_text(-0.0), "0 s"),
        (seconds_text(0), "0 s"),
        (seconds_text(1.3e-5), "13 us"),
        (seconds_text(0.9999), "1 s"),
        (seconds_text(-0.25), "-250 ms"),
        (seconds_text(125), "2 min 5 s"),
        (seconds_text(7200), "2 h"),
        (seconds_text(11520), "3 h 12 min"),
        (seconds_text(183600), "2 d 3 h"),
        (seconds_text(None), "-"),
        (hertz_text(1000), "1 kHz"),
        (hertz_text(0.05), "0.05 Hz"),
        (hertz_text(0), "0 Hz"),
        (hertz_text(1234.5, 6), "1.2345 kHz"),
        (rate_text(2.5e9), "2.5 GB/s"),
        (rate_text(1.5e13), "15.0 TB/s"),
        (count_text(9999), "9999"),
        (count_text(1234567), "1 234 567"),
        (count_text(None), "?"),
        (frames_text(1), "1 frame"),
        (frames_text(25000), "25 000 frames"),
    ],
)
def test_figures_for_people(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(-1e9, 1e9))
def test_times_never_have_a_power_of_ten(seconds: float) -> None:
    text = seconds_text(seconds)
    assert "e+" not in text
    assert "-0 " not in text


@given(st.floats(1e-9, 1e9), st.sampled_from(["seconds", "hertz", "metres", "eV"]))
def test_what_is_proposed_is_read_back(value: float, quantity: str) -> None:
    assert math.isclose(parse(in_units(value, quantity), quantity), value, rel_tol=1e-5)

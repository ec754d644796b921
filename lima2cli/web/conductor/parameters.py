"""The parameters of a client: JSON Schemas with the names of Lima2, from which their defaults come, too."""

import copy
from collections.abc import Mapping
from typing import Any

import jsonschema

from lima2cli.dataclass import dataclass
from lima2cli.web.conductor.refusals import wrong_parameter

Schema = dict[str, Any]
Parameters = dict[str, Any]

CLASS = "LimaProcessingLegacy"
"""The processing that is mapped."""

LONGEST_US = 3_600_000_000
"""Most microseconds of an exposure, and from one exposure to the next."""

MOST_PER_TRIGGER = 1_000_000_000

COMPRESSIONS = {"none": "none", "zip": "gzip", "bshuf_lz4": "bslz4"}
"""Compression of `io_hdf5` for each of Lima2."""

BUFFERS = ("frames", "input_frames", "roi_statistics", "roi_profiles", "frame_idx")

BUFFER_SIZE = 100
"""Default of sizes that have no effect."""


@dataclass(frozen=True)
class Defaults:
    """Parameters as the pipeline that is the base gives them.

    triggers  that its detector takes;  trigger  the one of them that it asks for
    instrument, detector  names in the files
    """

    frames: int
    expo_us: int
    latency_us: int
    triggers: tuple[str, ...]
    trigger: str
    frames_per_trigger: int
    instrument: str
    detector: str


def _object(properties: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object", "properties": dict(properties), "additionalProperties": False, "required": list(required),
        "default": {},
    }  # fmt: skip


def _whole(doc: str, default: int, minimum: int, maximum: int | None = None) -> Schema:
    own: Schema = {"type": "integer", "description": doc, "default": default, "minimum": minimum}
    return own | ({} if maximum is None else {"maximum": maximum})


def _one_of(doc: str, default: str, values: tuple[str, ...]) -> Schema:
    return {"type": "string", "description": doc, "default": default, "enum": list(values)}


def _text(doc: str, default: str) -> Schema:
    return {"type": "string", "description": doc, "default": default}


def _flag(doc: str, default: bool) -> Schema:
    return {"type": "boolean", "description": doc, "default": default}


def _number(doc: str) -> Schema:
    return {"type": "number", "description": doc}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "default": []}


def acquisition_schema(base: Defaults) -> Schema:
    """Return the schema of the parameters of control, and of receivers: they are the same."""
    acq = _object(
        {
            "nb_frames": _whole("Frames; 0: until stopped.", base.frames, 0),
            "expo_time": _whole("Exposure, in microseconds.", base.expo_us, 1, LONGEST_US),
            "latency_time": _whole("From the end of an exposure to the next, us.", base.latency_us, 0, LONGEST_US),
            "trigger_mode": _one_of("What starts frames.", base.trigger, base.triggers),
            "nb_frames_per_trigger": _whole("Frames of each trigger.", base.frames_per_trigger, 1, MOST_PER_TRIGGER),
        }
    )
    return _object({"acq": acq, "det": _object({})})


POINT = _object({"x": {"type": "integer", "minimum": 0}, "y": {"type": "integer", "minimum": 0}}, ("x", "y"))
RECT = _object({"topleft": POINT, "dimensions": POINT}, ("topleft", "dimensions"))
ARC = _object(
    {
        "center": _object({"x": _number("Column."), "y": _number("Row.")}, ("x", "y")),
        "r1": _number("Inner radius, pixels."),
        "r2": _number("Outer radius, pixels."),
        "a1": _number("First angle, degrees from +x, y down."),
        "a2": _number("Last angle."),
    },
    ("center", "r1", "r2", "a1", "a2"),
)


def _image(what: str) -> Schema:
    return _object(
        {"enabled": _flag(f"Whether {what} is applied.", False), "path": _text("FILE or FILE::DATASET.", "")}
    )


def processing_schema(base: Defaults) -> Schema:
    """Return the schema of the parameters of the processing."""
    size = "Has no effect: memory is that of the pipeline."
    computed = _flag("Whether they are computed.", True)
    statistics = {"enabled": computed, "rect_rois": _list(RECT), "arc_rois": _list(ARC)}
    profiles = {
        "enabled": computed,
        "rois": _list(RECT),
        "directions": _list({"type": "string", "enum": ["horizontal", "vertical"]}),
    }
    protection = {
        "enabled": _flag("It is not available: false.", False),
        "max_countrate": _whole(size, 100_000, 0),
        "pixel_capacity_override": _list({"type": "object"}),
        "abort_on_protection": _flag(size, True),
        "command": _text(size, ""),
        "args": _list({"type": "string"}),
    }
    saving = {
        "enabled": _flag("Whether frames are saved.", True),
        "base_path": _text("Folder; empty: as the pipeline says.", ""),
        "filename_prefix": _text("Name of the run directory in it.", "lima2"),
        "file_exists_policy": _one_of("What to do if it exists.", "abort", ("abort", "overwrite")),
        "nb_frames_per_file": _whole("Frames of each file; 0: all of a receiver.", 0, 0),
        "compression": _one_of("Compression.", "bshuf_lz4", tuple(COMPRESSIONS)),
        "nx_entry_name": _one_of("Entry in the files.", "entry_0000", ("entry_0000",)),
        "nx_instrument_name": _text("Instrument in the files.", base.instrument),
        "nx_detector_name": _text("Detector in the files.", base.detector),
        "nb_dimensions": _one_of("Frames are (n, height, width).", "dim_3d_or_4d", ("dim_3d_or_4d",)),
    }
    return _object(
        {
            "class_name": _one_of("Class of the processing.", CLASS, (CLASS,)),
            "fifo": _object({"nb_fifo_frames": _whole(size, BUFFER_SIZE, 1)}),
            "buffers": _object({f"nb_{name}_buffer": _whole(size, BUFFER_SIZE, 1) for name in BUFFERS}),
            "background": _image("the background"),
            "flatfield": _image("the flat field"),
            "mask": _image("the mask"),
            "accumulation": _object(
                {"enabled": _flag("Whether frames are summed.", False), "nb_frames": _whole("Frames of a sum.", 1, 1)}
            ),
            "statistics": _object(statistics),
            "profiles": _object(profiles),
            "max_countrate_protection": _object(protection),
            "saving": _object(saving),
        },
        ("class_name",),
    )


def defaults(schema: Schema) -> Any:
    """Return the defaults of a schema: a tree of all its keys."""
    if schema.get("type") == "object":
        return {name: defaults(inner) for name, inner in schema["properties"].items()}
    return copy.deepcopy(schema["default"])


def checked(given: Any, schema: Schema, where: str) -> Parameters:
    """Return parameters with the defaults of those that are absent.

    Raises:
        Refused: one is wrong, or unknown; of several, the one that says most.
    """
    wrong = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(given))
    if wrong is not None:
        allowed = dict(wrong.schema) if isinstance(wrong.schema, Mapping) else {}
        raise wrong_parameter(wrong.message, where, wrong.json_path, allowed)
    filled = _filled(given, schema)
    assert isinstance(filled, dict)
    return filled


def _filled(given: Any, schema: Schema) -> Any:
    if schema.get("type") != "object" or "properties" not in schema:
        return given
    properties: Mapping[str, Schema] = schema["properties"]
    return {
        name: _filled(given[name], inner) if name in given else defaults(inner) for name, inner in properties.items()
    }

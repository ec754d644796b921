"""The parameters of a client: JSON Schemas and how their values are put into the base pipeline."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema

from lima2cli.dataclass import dataclass
from lima2cli.web.conductor.refusals import Refused, wrong_parameter

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


BACKGROUND, FLATFIELD, MASK, ACCUMULATED = "background", "flatfield", "mask", "accumulated"
FRAME, STATISTICS, PROFILES, PROCESSED = "frame", "roi_stats", "roi_profile", "processed"
DIRECTIONS = ("horizontal", "vertical")

NODES = (
    BACKGROUND, FLATFIELD, MASK, ACCUMULATED, FRAME, STATISTICS, *(f"{PROFILES}_{way}" for way in DIRECTIONS), PROCESSED
)  # fmt: skip
"""Names of the nodes that parameters become: the base has none of them."""

ARC_SIZES = ("r1", "r2", "a1", "a2")

LONGEST_VALUE = 100_000
"""Most bytes of a value: it is an argument of the program that runs."""


@dataclass(frozen=True)
class Base:
    """Facts about the pipeline that is the base.

    flow    whose frames are processed;  kind  of its detector;  rate  whether it has `rate` rather than `period`
    """

    flow: str
    kind: str
    rate: bool
    defaults: Defaults

    @property
    def acquisition_schema(self) -> Schema:
        """The schema of the parameters of control and of receivers."""
        return acquisition_schema(self.defaults)

    @property
    def processing_schema(self) -> Schema:
        """The schema of the parameters of the processing."""
        return processing_schema(self.defaults)


@dataclass(frozen=True)
class Region:
    """A region of a table: its node, its columns ``<roi>_<statistic>``, and the values of a row, None = one."""

    node: str
    roi: str
    length: int | None = None


@dataclass(frozen=True)
class Mapped:
    """An acquisition as a pipeline: values to set, and where its results are.

    processed   the flow or node whose frames are the processed ones;  plain  they are those of the detector
    counted     a node whose rows count the processed frames;  saves  whether node `frame` saves them
    statistics, profiles   regions, in the order of the client
    warnings    parameters that have no effect
    """

    overrides: tuple[str, ...]
    processed: str
    plain: bool
    counted: str
    saves: bool
    statistics: tuple[Region, ...]
    profiles: tuple[Region, ...]
    warnings: tuple[str, ...]


def mapped(base: Base, request: Mapping[str, Any]) -> Mapped:
    """Return what the parameters of a client ask for: ``control``, ``receiver``, ``processing``.

    Raises:
        Refused: a parameter is wrong, or cannot be had.
    """
    for name in ("control", "receiver", "processing"):
        if name not in request:
            raise Refused(80, f"{name}: its parameters are missing")
    control = checked(request["control"], base.acquisition_schema, "control parameters")
    receiver = checked(request["receiver"], base.acquisition_schema, "receiver parameters")
    processing = checked(request["processing"], base.processing_schema, "processing parameters")
    if control != receiver:
        raise Refused(80, "the parameters of control and of receivers differ")
    if processing["max_countrate_protection"]["enabled"]:
        raise Refused(80, "max_countrate_protection: there is no protection against high count rates")
    steps, processed = _chain(base.flow, processing)
    statistics = _statistics(processing["statistics"])
    profiles = _profiles(processing["profiles"])
    saving = processing["saving"]
    ends: dict[str, Any] = {}
    if saving["enabled"]:
        ends[FRAME] = {
            "io_hdf5": {
                "compression": COMPRESSIONS[saving["compression"]],
                "frames_per_file": saving["nb_frames_per_file"],
            }
        }
    if statistics:
        ends[STATISTICS] = {"roi_counters": {"rois": {region.roi: shape for region, shape in statistics}}}
    for way in DIRECTIONS:
        node = f"{PROFILES}_{way}"
        rois = {region.roi: shape for region, shape in profiles if region.node == node}
        if rois:
            ends[node] = {"roi_profiles": {"rois": rois, "direction": way}}
    if not ends:  # frames that no node reads would not be computed, and could not be looked at
        ends[PROCESSED] = {"checkpoint": {}}
    nodes = steps | {name: {"input": processed} | node for name, node in ends.items()}
    values = _timing(base, control["acq"]) | {f"nodes.{name}": node for name, node in nodes.items()}
    if saving["enabled"]:
        values |= _destination(base, saving)
    if extra := request.get("masterfile_metadata"):
        values["metadata.extra.masterfile_metadata"] = _plain(extra)
    return Mapped(
        overrides=tuple(_override(key, value) for key, value in values.items()),
        processed=processed,
        plain=processed == base.flow,
        counted=next(iter(ends)),
        saves=saving["enabled"],
        statistics=tuple(region for region, _ in statistics),
        profiles=tuple(region for region, _ in profiles),
        warnings=tuple(_without_effect(processing)),
    )


def _chain(source: str, processing: Parameters) -> tuple[dict[str, Any], str]:
    """Return the nodes that change frames, in the order of the data, and the last of them."""
    nodes: dict[str, Any] = {}
    images = ((BACKGROUND, "background_sub"), (FLATFIELD, "flatfield"), (MASK, "mask"))
    for name, kind in images:
        if processing[name]["enabled"]:
            path = processing[name]["path"]
            if not path:
                raise wrong_parameter("a file is needed", "processing parameters", f"$.{name}.path")
            nodes[name], source = {"input": source, kind: {"image": path}}, name
    if processing["accumulation"]["enabled"]:
        frames = processing["accumulation"]["nb_frames"]
        nodes[ACCUMULATED], source = {"input": source, "accumulate": {"frames": frames}}, ACCUMULATED
    return nodes, source


def _rect(roi: Parameters) -> dict[str, Any]:
    corner, size = roi["topleft"], roi["dimensions"]
    return {"rect": {"x": corner["x"], "y": corner["y"], "width": size["x"], "height": size["y"]}}


def _statistics(given: Parameters) -> list[tuple[Region, dict[str, Any]]]:
    """Return the regions, rectangles before arcs, each as it is written in the pipeline."""
    if not given["enabled"]:
        return []
    arcs = [{"arc": arc["center"] | {key: arc[key] for key in ARC_SIZES}} for arc in given["arc_rois"]]
    shapes = [_rect(roi) for roi in given["rect_rois"]] + arcs
    return [(Region(STATISTICS, f"r{number}"), shape) for number, shape in enumerate(shapes)]


def _profiles(given: Parameters) -> list[tuple[Region, dict[str, Any]]]:
    if not given["enabled"]:
        return []
    if len(given["rois"]) != len(given["directions"]):
        message = f"{len(given['rois'])} regions, and {len(given['directions'])} directions"
        raise wrong_parameter(message, "processing parameters", "$.profiles.directions")
    found = []
    for number, (roi, way) in enumerate(zip(given["rois"], given["directions"], strict=True)):
        length = roi["dimensions"]["x" if way == "horizontal" else "y"]
        found.append((Region(f"{PROFILES}_{way}", f"p{number}", length), _rect(roi)))
    return found


def _timing(base: Base, acq: Parameters) -> dict[str, Any]:
    period_us = acq["expo_time"] + acq["latency_time"]
    timing = {"acquisition.rate": 1e6 / period_us} if base.rate else {"acquisition.period": f"{period_us} us"}
    return {
        "acquisition.frames": acq["nb_frames"],
        **timing,
        "acquisition.exposure": f"{acq['expo_time']} us",
        "acquisition.trigger": acq["trigger_mode"],
        "acquisition.frames_per_trigger": acq["nb_frames_per_trigger"],
    }


def _destination(base: Base, saving: Parameters) -> dict[str, Any]:
    values = {
        "metadata.instrument": saving["nx_instrument_name"],
        f"detector.{base.kind}.name": saving["nx_detector_name"],
        "output.if_exists": saving["file_exists_policy"],
    }
    folder, prefix = saving["base_path"], saving["filename_prefix"]
    if not folder:
        return values
    for key, part in (("base_path", folder), ("filename_prefix", prefix)):
        if ":" in part:  # the client divides the address of a frame there
            message = f"{part}: a `:` is not possible, clients would not find frames"
            raise wrong_parameter(message, "processing parameters", f"$.saving.{key}")
    if not prefix or "/" in prefix or prefix in (".", ".."):
        message = "the name of a directory is needed"
        raise wrong_parameter(message, "processing parameters", "$.saving.filename_prefix")
    whole = f"{folder.rstrip('/')}/{prefix}"
    return values | {"output.directory": whole.replace("{", "{{").replace("}", "}}")}


def _without_effect(processing: Parameters) -> Sequence[str]:
    sizes = {"fifo": processing["fifo"], "buffers": processing["buffers"]}
    return [
        f"{group}.{key} has no effect: memory is that of the pipeline"
        for group, values in sizes.items()
        for key, value in values.items()
        if value != BUFFER_SIZE
    ]


def _plain(data: Any) -> Any:
    """Return metadata without what clients put around arrays."""
    if isinstance(data, dict):
        if data.get("type") == "numpy.ndarray" and "value" in data:
            return data["value"]
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(item) for item in data] if isinstance(data, list) else data


def _override(key: str, value: Any) -> str:
    """Return a value as it is written behind ``--set``; a dollar sign stands for itself."""
    text = f"{key}={json.dumps(value)}".replace("$", "$$")
    if len(text) > LONGEST_VALUE:
        raise Refused(80, f"{key}: more than {LONGEST_VALUE} characters")
    return text

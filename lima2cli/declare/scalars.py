"""Shapes of values without parts: numbers, strings, choices, quantities, references."""

import math
import re
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lima2cli import units
from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import POISON, KeyPath
from lima2cli.secret import Secret

if TYPE_CHECKING:
    from lima2cli.declare.reading import Reading

Schema = dict[str, Any]

LARGEST = 2**63
"""Bound of all numbers of the language, so that sums and products of a few stay finite."""


Sort = Literal["mapping", "list", "string", "number", "flag", "nothing"]


def sort(value: Any) -> Sort:
    """Return the kind of YAML value."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list):
        return "list"
    return "nothing" if value is None else "string"


class OutOfBounds(ValueError):
    """A quantity that is too small or too large."""


class Unfit(Exception):
    """Raised for data that break a keyword of a shape's schema, which is its argument."""


class Shape:
    """The values that may be written for a key. ``sorts``: the kinds of YAML value among them."""

    sorts: Collection[str] = ("mapping", "list", "string", "number", "flag", "nothing")

    def schema(self) -> Schema:
        """Return the JSON Schema (draft 2020-12) of the value."""
        raise NotImplementedError

    @cached_property
    def described(self) -> Schema:
        """Return the schema, made once, for messages; it is not to be changed."""
        return self.schema()

    def read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        """Return the Python value of data at a path.

        `POISON` where they do not fit, which is reported, and where a mistake is known already.
        """
        if reading.stand_in is not None and reading.stand_in(data):
            reading.look(data, at)
            return POISON
        value = self._read(data, at, reading)
        return POISON if at in reading.bad else value

    def takes(self, data: Any) -> bool:
        """Return True if data are of a kind that may be meant for this shape."""
        return sort(data) in self.sorts

    def known_keys(self) -> Collection[str]:
        """Return the keys that a mapping of this shape may have, where they are declared."""
        return ()

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        raise NotImplementedError


class Scalar(Shape):
    """A value without parts."""

    def names_file(self, data: str) -> bool:
        """Return True if a string begins with a file's name."""
        return False

    def hides(self) -> bool:
        """Return True if the value may be a secret."""
        return False

    def fit(self, data: Any) -> Any:
        """Return the Python value of data.

        Raises: Unfit where they don't fit.
        """
        if not self.takes(data):
            raise Unfit("type")
        return data

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        reading.look(data, at)
        made = POISON
        if at not in reading.bad:
            try:
                made = self.fit(data)
            except Unfit as unfit:
                reading.fault(str(unfit), data, self, at)
        if isinstance(data, str):
            if self.names_file(data):
                reading.files.append(at)
            if isinstance(data, Secret) and not self.hides():
                reading.misplaced(at)
        return made


def _bounds(minimum: float | None, maximum: float | None, above: float | None = None) -> Schema:
    limits = {"minimum": minimum, "maximum": maximum, "exclusiveMinimum": above}
    return {key: value for key, value in limits.items() if value is not None}


def _check_bounds(data: float, minimum: float | None, maximum: float | None = None, above: float | None = None) -> None:
    if minimum is not None and data < minimum:
        raise Unfit("minimum")
    if maximum is not None and data > maximum:
        raise Unfit("maximum")
    if above is not None and data <= above:
        raise Unfit("exclusiveMinimum")


@dataclass(frozen=True)
class Integer(Scalar):
    """A whole number."""

    sorts = ("number",)
    minimum: int | None = None
    maximum: int | None = None

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {"type": "integer", **_bounds(self.minimum, self.maximum)}

    def fit(self, data: Any) -> int:
        """See `Scalar.fit`."""
        if not self.takes(data) or data % 1:
            raise Unfit("type")
        _check_bounds(data, self.minimum, self.maximum)
        return int(data)


@dataclass(frozen=True)
class Number(Scalar):
    """A finite number."""

    sorts = ("number",)
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {"type": "number", **_bounds(self.minimum, self.maximum, self.above)}

    def fit(self, data: Any) -> float:
        """See `Scalar.fit`."""
        number: float = super().fit(data)
        _check_bounds(number, self.minimum, self.maximum, self.above)
        return number


@dataclass(frozen=True)
class NumberOrNan(Scalar):
    """A finite number, or NaN, written ``.nan`` or ``nan``."""

    sorts = ("number", "string")

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {"anyOf": [{"type": "number"}, {"enum": ["nan"]}], "x-nan": True, "x-words": "a number, or nan"}

    def fit(self, data: Any) -> float:
        """See `Scalar.fit`."""
        if sort(data) != "number" and data != "nan":
            raise Unfit("anyOf")
        return math.nan if data == "nan" else data

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        return data if isinstance(data, float) and math.isnan(data) else super()._read(data, at, reading)


@dataclass(frozen=True)
class Flag(Scalar):
    """A boolean, true or false."""

    sorts = ("flag",)

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Scalar):
    """A string, matched by ``pattern`` where given; ``words`` say in a message what that means ("a name").

    ``may_hide``: it is passed on, and names nothing, so that it may be a secret.
    """

    sorts = ("string",)
    pattern: str | None = None
    words: str | None = None
    may_hide: bool = False

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        pattern = {"pattern": self.pattern} if self.pattern else {}
        return {"type": "string"} | pattern | ({"x-words": self.words} if self.words else {})

    def fit(self, data: Any) -> str:
        """See `Scalar.fit`."""
        text: str = super().fit(data)
        if self.pattern is not None and not matches(self.pattern, text):
            raise Unfit("pattern")
        return text

    def hides(self) -> bool:
        """See `Scalar.hides`."""
        return self.may_hide


def matches(pattern: str, text: str) -> bool:
    """Return True if a string matches to its end, as JSON Schema has it; Python's ``$`` passes over a last newline."""
    return re.search(re.sub(r"\$$", r"\\Z", pattern), text) is not None


@dataclass(frozen=True)
class Choice(Scalar):
    """One of a few values."""

    values: tuple[Any, ...]

    @property
    def sorts(self) -> Collection[str]:  # type: ignore[override]
        """Return the kinds of the values."""
        return {sort(value) for value in self.values}

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {"enum": list(self.values)}

    def takes(self, data: Any) -> bool:
        """See `Shape.takes`."""
        return any(data == value and isinstance(data, bool) == isinstance(value, bool) for value in self.values)

    def fit(self, data: Any) -> Any:
        """See `Scalar.fit`."""
        if not self.takes(data):
            raise Unfit("enum")
        return next(value for value in self.values if value == data)  # 90 where 90.0 is written


@dataclass(frozen=True)
class Plausible:
    """The range of values of a quantity that are probably meant, in base units; 0 is plausible where it is allowed.

    bare  only plain numbers are doubted: who writes a unit means it
    """

    least: float
    most: float
    bare: bool = False


@dataclass(frozen=True)
class Quantity(Scalar):
    """A number in base units, or a string with a unit (``16 MiB``). Whole for bytes and bits."""

    sorts = ("number", "string")
    unit: str
    minimum: float | None = None
    above: float | None = None
    plausible: Plausible | None = None

    @property
    def whole(self) -> bool:
        """Return True if only whole numbers make sense."""
        return self.unit in ("bytes", "bits")

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        number: Schema = {"type": "integer" if self.whole else "number"}
        signed = (self.minimum is None or self.minimum < 0) and self.above is None
        return {
            "anyOf": [
                number | _bounds(self.minimum, None, self.above),
                {"type": "string", "pattern": units.pattern(self.unit, signed=signed)},
            ],
            "x-unit": self.unit,
        }

    def parse(self, data: int | float | str) -> float:
        """Return the number in base units.

        Raises: ValueError where a string is not a quantity, out of bounds, or bytes don't come out whole.
        """
        value: float = data if not isinstance(data, str) else units.parse(data, self.unit)
        if not abs(value) < LARGEST:
            raise OutOfBounds(f"a smaller number, got {data}")
        if self.minimum is not None and value < self.minimum:
            raise OutOfBounds(f"at least {self.minimum:g} {self.unit}, got {data}")
        if self.above is not None and value <= self.above:
            raise OutOfBounds(f"more than {self.above:g} {self.unit}, got {data}")
        if self.whole and value != int(value):
            comes_out = f"and {data} is {value:.15g} {self.unit}" if isinstance(data, str) else f"got {data}"
            raise ValueError(f"a whole number of {self.unit}, {comes_out}")
        return int(value) if self.whole else value

    def fit(self, data: Any) -> float:
        """See `Scalar.fit`."""
        try:
            if not self.takes(data):
                raise ValueError
            return self.parse(data)
        except ValueError:
            raise Unfit("x-unit") from None

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        value = super()._read(data, at, reading)
        if self.plausible is not None and value is not POISON:
            reading.quantities.append((at, self, data))
        return value


PHOTON_ENERGY = Quantity("eV", above=0, plausible=Plausible(100, 1e6))
THRESHOLD = Quantity("eV", minimum=0, plausible=Plausible(100, 1e6))
"""Energies of single photons, and of the thresholds above which they count."""


@dataclass(frozen=True)
class FileReference(Scalar):
    """A reference to a file: ``path.h5::/path/in/file``, ``path.edf``, ``path.cbf``, ``path.tif``, ``path.npy``."""

    sorts = ("string",)

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {"type": "string", "minLength": 1, "x-words": "a file, such as `dark.h5::/entry/data`"}

    def fit(self, data: Any) -> str:
        """See `Scalar.fit`."""
        if data == "":
            raise Unfit("minLength")
        return super().fit(data)  # type: ignore[no-any-return]

    def names_file(self, data: str) -> bool:
        """See `Scalar.names_file`."""
        return True


@dataclass(frozen=True)
class FunctionReference(Text):
    """A reference to a function: ``module:name``, or ``file.py:name``."""

    pattern: str | None = r"^[^:]+:[A-Za-z_][A-Za-z0-9_]*$"

    def names_file(self, data: str) -> bool:
        """See `Scalar.names_file`."""
        return ".py:" in data


@dataclass(frozen=True)
class Anything(Shape):
    """Any YAML value, taken as it is; secrets may be in it."""

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {}

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        reading.look(data, at)
        return data

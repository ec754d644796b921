"""Kinds of node and detector: those built in, and those that installed packages bring.

A package names its classes as entry points, ``kind = "module:Class"``, in the group ``lima2cli.nodes`` or
``lima2cli.detectors``. Looking for them costs time: it is done only where a kind is asked for that is not built in,
or where all kinds are. A class is imported only where its kind is asked for, so that a package that cannot be
imported breaks nothing that does not use it, and those built in cost no time where they are not used.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lima2cli.dataclass import dataclass
from lima2cli.declare import Table, params
from lima2cli.errors import Lima2Error
from lima2cli.foreign import call_foreign, error_text

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

KIND = r"[a-z][a-z0-9_]*"
"""Pattern of names of kinds."""


class PluginProblem(Lima2Error):
    """A kind of an installed package that cannot be used; ``rule`` names the diagnostic that it becomes."""

    def __init__(self, rule: str, message: str, help: str) -> None:
        super().__init__(message)
        self.rule, self.help = rule, help


@dataclass(frozen=True)
class Provider:
    """The provider of a kind: a distribution and its version; None where it is built in."""

    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return "built in" if self.distribution is None else f"{self.distribution} {self.version}".rstrip()


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind that is built in or that some package claims.

    table    its class; None where it was not asked for, or cannot be used
    origin   who brings it, the first of those who claim it
    problem  why it cannot be used; a built-in kind that a package claims too has both
    """

    table: type[T] | None
    origin: Provider = Provider()
    problem: PluginProblem | None = None


class Kinds(Generic[T]):
    """The kinds of one sort of thing."""

    def __init__(
        self,
        what: str,
        group: str,
        base: type[T],
        built_in: Mapping[str, str],
        roles: tuple[type, ...] = (),
        reserved: Collection[str] = (),
    ) -> None:
        """Make the kinds of one sort.

        ``built_in``: where their classes are, ``module:Class``, by kind. Classes of ``group`` must be of ``base`` (and
        one of ``roles``), kinds none of ``reserved``.
        """
        self.built_in = built_in
        self._what, self._group, self._reserved = what, group, reserved
        self._base, self._roles = base, roles or (base,)

    def named(self, asked: Collection[str]) -> Mapping[str, Kind[T]]:
        """Return all kinds by name, for a text that asks for some: only those are imported.

        Where all kinds asked for are built in, packages are not looked at.
        """
        if all(name in self.built_in for name in asked):
            return self._own(asked)
        return self._found(asked)

    def all(self) -> Mapping[str, Kind[T]]:
        """Return all kinds by name, those built in first; all are imported."""
        return self._found(None)

    def tables(self) -> Mapping[str, type[T]]:
        """Return the tables of the built-in kinds; all are imported."""
        return {name: _imported(place) for name, place in self.built_in.items()}

    def _own(self, asked: Collection[str] | None) -> dict[str, Kind[T]]:
        """Return the built-in kinds, with the tables of those asked for; None = of all."""
        return {
            name: Kind(_imported(place) if asked is None or name in asked else None)
            for name, place in self.built_in.items()
        }

    def _found(self, asked: Collection[str] | None) -> dict[str, Kind[T]]:
        from importlib.metadata import entry_points

        claims: dict[str, list[EntryPoint]] = {}
        for claim in sorted(entry_points(group=self._group), key=lambda claim: (claim.name, str(_origin(claim)))):
            claims.setdefault(claim.name, []).append(claim)
        kinds = self._own(asked)
        for name, claimed in claims.items():
            if asked is None or name not in self._reserved:  # those are reported in lists only
                kinds[name] = self._one(name, kinds.get(name), claimed, asked is None or name in asked)
        return kinds

    def _one(self, name: str, own: Kind[T] | None, claims: Sequence["EntryPoint"], wanted: bool) -> Kind[T]:
        """Return a kind that packages claim; ``own`` is the built-in kind of that name."""
        table = None if own is None else own.table
        owners = ([] if own is None else [own.origin]) + [_origin(claim) for claim in claims]
        if not wanted:
            return Kind(table, owners[0])
        if len(owners) > 1:
            named = " and ".join("lima2 itself" if owner.distribution is None else str(owner) for owner in owners)
            message = f"the {self._what} `{name}` is claimed by {named}"
            return Kind(table, owners[0], PluginProblem("kind-claimed-twice", message, "uninstall all but one of them"))
        try:
            return Kind(self._load(name, claims[0]), owners[0])
        except PluginProblem as problem:
            return Kind(None, owners[0], problem)

    def _load(self, name: str, claim: "EntryPoint") -> type[T]:
        """Return the class of an entry point.

        Raises: PluginProblem.
        """
        try:
            loaded = call_foreign(claim.load)
        except Exception as error:  # whatever a module of others does when it is imported
            raise self._broken(name, claim, f"{claim.value} cannot be imported: {error_text(error)}") from error
        if wrong := self._wrong(name, loaded):
            raise self._broken(name, claim, f"{claim.value} {wrong}")
        try:
            Table(loaded).schema()
        except Exception as error:
            raise self._broken(
                name, claim, f"the parameters of {claim.value} cannot be read: {error_text(error)}"
            ) from error
        return loaded  # type: ignore[no-any-return]

    def _wrong(self, name: str, loaded: Any) -> str | None:
        """Return the fault of a class, as the end of a sentence; None without."""
        if not isinstance(loaded, type) or not issubclass(loaded, self._base):
            return f"is not a {self._base.__module__}.{self._base.__name__}"
        if not issubclass(loaded, self._roles):
            return f"is not one of {', '.join(role.__name__ for role in self._roles)}"
        if "__dataclass_fields__" not in vars(loaded):
            return "is not a dataclass"
        table: Any = loaded  # for fields(), which wants to see that it is a dataclass
        if extra := [field.name for field in fields(table) if field.name not in params(table)]:
            return f"has a field that is not made by `param`: {', '.join(extra)}"
        if _kind(loaded) != name:
            return f"has the kind `{_kind(loaded)}`: name and kind must be the same"
        if name in self._reserved or not re.fullmatch(KIND, name):
            return "has a kind that cannot be written: small letters, digits and _, and no key of the language"
        return None

    def _broken(self, name: str, claim: "EntryPoint", reason: str) -> PluginProblem:
        message = f"the {self._what} `{name}` of {_origin(claim)} cannot be used: {reason}"
        return PluginProblem("plugin-broken", message, f"fix, update or uninstall {_origin(claim).distribution}")


def _imported(place: str) -> Any:
    """Return the object that ``module:name`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _kind(table: Any) -> str:
    return str(getattr(table, "kind", None))


def _origin(claim: "EntryPoint") -> Provider:
    name, version = (None, None) if claim.dist is None else (claim.dist.name, claim.dist.version)
    return Provider(name or "an unnamed package", version or "")  # metadata may be incomplete

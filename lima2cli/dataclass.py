"""The `dataclass` of the standard library, declared at a tenth of the cost.

That one compiles up to six methods for each class, most of a millisecond, and a start declares some 200 classes: half
of the time that importing lima2 takes. Here the methods that compare, hash and show are shared by all classes, and
``__init__`` is compiled when it is first called; ranks unpickle most of their instances, which does not call it.
"""

import dataclasses
from dataclasses import FrozenInstanceError, fields
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        cls: type | None = None, /, *, frozen: bool = False, eq: bool = True, repr: bool = True, kw_only: bool = False,
        slots: bool = False,
    ) -> Any:  # fmt: skip
        """Make a class a dataclass as `dataclasses.dataclass` does; by that one where it gets slots."""

        def decorate(cls: type) -> type:
            if slots:
                return dataclasses.dataclass(cls, frozen=frozen, eq=eq, repr=repr, kw_only=kw_only, slots=True)
            own = {name for name, value in vars(cls).items() if value is not None}  # `__eq__` makes `__hash__` None
            derived = any(map(dataclasses.is_dataclass, cls.__mro__[1:]))
            dataclasses.dataclass(cls, init=False, repr=False, eq=False, frozen=frozen and derived, kw_only=kw_only)
            methods = {"__init__": _compiled_at_first_call(cls, frozen)} | ({"__repr__": _show} if repr else {})
            if eq:
                names = [one.name for one in fields(cls) if one.compare]
                cls._compared = attrgetter(*names) if names else type
                methods |= {"__eq__": _equal, "__hash__": _hash if frozen else None}
            if frozen and not derived:
                cls.__dataclass_params__.frozen = True  # classes that are derived from it are asked for the same
                methods |= _refusals(cls)
            for name in methods.keys() - own:
                setattr(cls, name, methods[name])
            return cls

        return decorate if cls is None else decorate(cls)


def _compiled_at_first_call(cls: Any, frozen: bool) -> Any:
    """Return an ``__init__`` that puts the one of the standard library in its place."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        declared = [(one.name, one.type, one) for one in fields(cls)]
        kept = {name: getattr(cls, name) for name in ("__doc__", "__qualname__", "__post_init__") if hasattr(cls, name)}
        made: Any = dataclasses.make_dataclass(
            cls.__name__, declared, namespace=kept, repr=False, eq=False, frozen=frozen
        )
        cls.__init__ = made.__init__
        made.__init__(self, *args, **kwargs)

    return __init__


def _refusals(cls: type) -> dict[str, Any]:
    """Return the methods that keep instances of a class as they are, and fields of classes derived from it."""

    def refuse(self: Any, name: str, what: str) -> None:
        if type(self) is cls or name in cls.__dataclass_fields__:  # type: ignore[attr-defined]
            raise FrozenInstanceError(f"cannot {what} field {name!r}")

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        refuse(self, name, "assign to")
        object.__setattr__(self, name, value)

    def __delattr__(self: Any, name: str) -> None:  # noqa: N807
        refuse(self, name, "delete")
        object.__delattr__(self, name)

    return {"__setattr__": __setattr__, "__delattr__": __delattr__}


@recursive_repr()
def _show(self: Any) -> str:
    shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _equal(self: Any, other: Any) -> Any:
    return self._compared(self) == self._compared(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(self._compared(self))

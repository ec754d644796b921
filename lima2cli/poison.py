"""A value that is known to be bad, so that no second mistake is reported because of it.

Checks read values as if all were well. Where one is ``POISON``, reading it raises `Poisoned`, and
`attempt` skips that check and no other.
"""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class Poisoned(Exception):
    """A check read a value that had been reported already."""


class _Poison:
    """Raises on every use except identity."""

    def _raise(self, *_: object) -> NoReturn:
        raise Poisoned

    def __repr__(self) -> str:
        return "POISON"

    __getattr__ = __getitem__ = __call__ = __iter__ = __len__ = __contains__ = __bool__ = _raise
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _raise
    __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __neg__ = __pos__ = __abs__ = _raise
    __round__ = __int__ = __float__ = __index__ = _raise
    __lt__ = __le__ = __gt__ = __ge__ = __str__ = __format__ = _raise
    __eq__ = __ne__ = _raise
    __hash__ = _raise


POISON: Any = _Poison()


def attempt(compute: Callable[[], T]) -> T:
    """``compute()``, or ``POISON`` where it read a poisoned value."""
    try:
        return compute()
    except Poisoned:
        return POISON  # type: ignore[no-any-return]

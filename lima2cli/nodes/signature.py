"""Functions of the user's in the text of their module: whether they are there, and take what they will be given.

Nothing is run: a module is parsed, and a signature read from its definition. What only running could tell is taken as
fit: names bound more than once or by `import`, decorated functions, methods of base classes, `__getattr__`.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 1 << 20
"""Bytes of a module that is looked into."""

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_LITERALS = ast.Constant | ast.List | ast.Tuple | ast.Dict | ast.Set | ast.JoinedStr | ast.ListComp | ast.DictComp
_OPEN = ("globals", "locals", "vars", "setattr", "exec", "eval")
"""Functions by which a module may bind names that its text does not have."""


@dataclass
class Unfit(Exception):
    """What is wrong with a function, in words; ``param``: the parameter that it is about."""

    message: str
    help: str | None = None
    param: str | None = None


@dataclass(frozen=True)
class Module:
    """What a module binds at its top: ``bound`` by name, and whether there may be more (``open``)."""

    bound: Mapping[str, list[ast.AST]]
    open: bool


def module_of(source: bytes, path: str) -> Module:
    """Parse a module. ValueError where it is not Python, or too large."""
    if len(source) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB")
    try:
        tree = ast.parse(source, path)
        bound: dict[str, list[ast.AST]] = {}
        for name, how in _bindings(tree.body):
            bound.setdefault(name, []).append(how)
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return Module(bound, "*" in bound or "__getattr__" in bound or bool(named.intersection(_OPEN)))


def check_called(module: Module, name: str, params: Mapping[str, Any], passed: frozenset[str] = frozenset()) -> None:
    """Raise `Unfit` where ``name`` can't be called as ``f(frames, numbers, **params)``, or as a class ``C(spec,
    **params)`` whose objects are called with frames and numbers. ``passed``: names on the way to this one."""
    how = module.bound.get(name, [])
    if len(how) != 1:
        return
    (found,) = how
    if isinstance(found, _LITERALS):
        raise Unfit(f"{name} is no function: line {getattr(found, 'lineno', 0)} gives it a value")
    if isinstance(found, ast.Lambda):
        _bind(name, found.args, 2, params, "frames and numbers")
    elif isinstance(found, ast.Name) and found.id not in passed:
        check_called(module, found.id, params, passed | {name})
    elif isinstance(found, _Definition) and not found.decorator_list:
        if isinstance(found, ast.ClassDef):
            _check_class(found, params)
            return
        if isinstance(found, ast.AsyncFunctionDef):
            raise Unfit(f"{name} is a coroutine (async def), which nothing awaits", "write `def`")
        if any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in _own(found)):
            raise Unfit(f"{name} is a generator (it has `yield`), and returns no frames", "return an array")
        _bind(name, found.args, 2, params, "frames and numbers")


def _check_class(found: ast.ClassDef, params: Mapping[str, Any]) -> None:
    methods = {it.name: it for it in found.body if isinstance(it, ast.FunctionDef)}
    others = {name for name, _ in _bindings(found.body)} - methods.keys()
    alone = not (found.bases or found.keywords or "__new__" in methods or "__getattr__" in methods)
    for name, given, words in (("__init__", params, "the spec"), ("__call__", {}, "frames and numbers")):
        method = methods.get(name)
        if method is not None and not method.decorator_list:
            count = 2 if name == "__init__" else 3  # with `self`
            _bind(f"{found.name}.{name}", method.args, count, given, words)
        elif method is None and alone and name not in others:
            raise Unfit(f"{found.name} has no method {name}", f"def {name}(self, {words})")


def _bind(name: str, args: ast.arguments, count: int, params: Mapping[str, Any], words: str) -> None:
    """Hold a call with ``count`` values and ``params`` by name against the arguments of a definition."""
    try:
        _signature(args).bind(*[None] * count, **params)
    except TypeError as error:
        unknown = next((key for key in params if f"'{key}'" in str(error)), None)
        missing = str(error).partition("argument: '")[2].rstrip("'") if "missing" in str(error) else ""
        help = f"params: {{{missing}: …}}, or a default for {missing}" if missing else None
        raise Unfit(f"{name} can't be called with {words}{_and(params)}: {error}", help, unknown) from error


def _and(params: Mapping[str, Any]) -> str:
    return f" and {', '.join(params)}" if params else ""


def _signature(args: ast.arguments) -> inspect.Signature:
    """The signature of a definition; any value stands for a default."""
    kinds = inspect.Parameter
    plain = [*args.posonlyargs, *args.args]
    first = len(plain) - len(args.defaults)
    found = [
        kinds(
            arg.arg,
            kinds.POSITIONAL_ONLY if index < len(args.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD,
            default=None if index >= first else kinds.empty,
        )
        for index, arg in enumerate(plain)
    ]
    if args.vararg:
        found.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None))
    if args.kwarg:
        found.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(found)


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Names that statements bind, within `if`, `try`, `for` and `with`, too; each with what it is bound to."""
    for item in body:
        if isinstance(item, _Definition):
            yield item.name, item
        elif isinstance(item, ast.ImportFrom | ast.Import):
            for alias in item.names:
                yield (alias.asname or alias.name).partition(".")[0], item
        elif isinstance(item, ast.Assign):
            for target in item.targets:
                simple = isinstance(target, ast.Name)
                yield from ((name, item.value if simple else item) for name in _names(target))
        elif isinstance(item, ast.AnnAssign):
            if item.value is not None:
                yield from ((name, item.value) for name in _names(item.target))
        else:
            yield from ((node.id, item) for node in _own(item) if _is_stored(node))
            for field in ("body", "orelse", "finalbody"):
                yield from _bindings([it for it in getattr(item, field, ()) if isinstance(it, ast.stmt)])
            for part in (*getattr(item, "handlers", ()), *getattr(item, "cases", ())):
                yield from _bindings(part.body)


def _names(target: ast.AST) -> Iterator[str]:
    return (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _own(item: ast.AST) -> Iterator[Any]:
    """All nodes of a statement's own scope, without those of functions and classes in it."""
    ahead = list(ast.iter_child_nodes(item))
    while ahead:
        node = ahead.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            ahead.extend(ast.iter_child_nodes(node))

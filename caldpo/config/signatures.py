"""The constructor's signature is the schema of its yaml.

``read_signature`` reads it from the source text of targets inside caldpo and Lightning, so that a bad value is answered
without importing torch. Annotations are resolved through the module's own assignments and its imports of builtins,
``typing``, ``collections.abc``, pydantic and these two packages; one that names anything else (a tensor, a model) is
left unchecked.
"""

from __future__ import annotations

import ast
import collections.abc
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import pydantic

from caldpo.config import bounds
from caldpo.config.did_you_mean import suggest
from caldpo.config.lightning_keys import NARROWER
from caldpo.config.value_checks import Section, is_config_type, is_section, problem
from caldpo.errors import CaldpoError

_LIGHTNING = "pytorch_lightning"
# packages whose sources are read; found without an import, which would take seconds
_FOLDERS = {"caldpo": Path(__file__).parents[1], _LIGHTNING: Path(find_spec(_LIGHTNING).origin).parent}  # type: ignore
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_NAMES = {"typing": typing, **{kind.__name__: kind for kind in (bool, int, float, str, list, tuple, dict)}}
_LIBRARIES: dict[str, Any] = {
    "typing": typing,
    "collections.abc": collections.abc,
    "caldpo.config.bounds": bounds,
    "pydantic": pydantic,
}
# Bases that add no constructor arguments of their own.
_PLAIN_BASES = {"object", "ABC", "abc.ABC", "Module", "nn.Module", "torch.nn.Module", "Protocol", "Generic"}
# Classes whose values a yaml writes without a _target_.
_VALUE_BASES = {"TypedDict", "Enum", "StrEnum", "IntEnum", "NamedTuple"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_UNREADABLE: Any = object()  # stands for an annotation that names an object which only code can supply


@dataclass(frozen=True)
class Parameter:
    """One keyword argument: its annotation and whether it has a default."""

    name: str
    annotation: Any
    has_default: bool

    @property
    def checked(self) -> bool:
        """Tell whether a yaml value can be checked against the annotation."""
        return is_config_type(self.annotation)

    @property
    def required(self) -> bool:
        """Tell whether the yaml has to give it; an object without a default (a model) is supplied by code."""
        return self.checked and not self.has_default and not is_section(self.annotation)


@dataclass(frozen=True)
class Signature:
    """The keyword arguments of a target; ``open`` when it takes others too (``**kwargs``, a foreign base)."""

    target: str
    parameters: Mapping[str, Parameter]
    open: bool = False


@functools.cache
def read_signature(target: str) -> Signature | None:
    """Read the signature of ``caldpo.MODULE.Class``, ``.function`` or ``.Class.method``; None of other packages.

    A class without ``__init__`` has its base's signature; dataclasses add up the fields of theirs. A CaldpoError tells
    that caldpo has no such module, class or function.
    """
    if target.split(".")[0] not in _FOLDERS:
        return None
    module, names = _locate(target)
    node: ast.AST = module.tree
    owner: ast.ClassDef | None = None
    for name in names:
        owner = node if isinstance(node, ast.ClassDef) else None
        member = _members(node).get(name)
        if node is module.tree and (found := module.find_class(name)):
            module, member = found  # where it is defined, which may be another file
        if member is None and name in module.imports:
            return None
        if member is None:
            near = suggest(name, (known for known in _members(node) if not known.startswith("_")))
            raise CaldpoError(f"there is no {name} in {module.path}{near}", key="_target_", value=target)
        node = member
    if isinstance(node, ast.ClassDef):
        parameters, is_open = _of_class(module, node)
        for name, annotation in NARROWER.get(node.name, {}).items() if target.startswith(_LIGHTNING) else ():
            parameters[name] = replace(parameters[name], annotation=annotation)
        return Signature(target, parameters, is_open)
    assert isinstance(node, _Function)
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    return Signature(target, *_of_function(module, node, bound=owner is not None and not is_static))


class _Module:
    """A parsed file of the package; resolves the names its annotations use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        self.imports: dict[str, tuple[str, str]] = {}
        self.assigned: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imports |= {a.asname or a.name: (node.module, a.name) for a in node.names}
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.assigned[node.targets[0].id] = node.value

    def __getitem__(self, name: str) -> Any:
        """The object a name in an annotation stands for; KeyError when it is not to be followed."""
        if name in self.assigned:
            return self.evaluate(self.assigned[name])
        if name in self.imports:
            source, original = self.imports[name]
            if source in _LIBRARIES:
                return getattr(_LIBRARIES[source], original)
            if path := _module_file(source.split(".")):
                return _parsed(path)[original]
        if (located := self.find_class(name)) and not _VALUE_BASES & {ast.unparse(b) for b in located[1].bases}:
            return type(located[1].name, (Section,), {})
        return _NAMES[name]

    def evaluate(self, annotation: ast.expr | None) -> Any:
        """Evaluate an annotation; one that names what only code can supply becomes a mark."""
        if annotation is None:
            return _UNREADABLE
        code = compile(ast.Expression(annotation), str(self.path), "eval")
        try:
            value = eval(code, {"__builtins__": {}}, self)  # type: ignore[arg-type]  # has __getitem__
            return self.evaluate(ast.parse(value, mode="eval").body) if isinstance(value, str) else value
        except (NameError, AttributeError, TypeError, SyntaxError):
            return _UNREADABLE

    def find_class(self, name: str) -> tuple[_Module, ast.ClassDef] | None:
        """Find a class of the package by the name it has in this module."""
        node = _members(self.tree).get(name)
        if isinstance(node, ast.ClassDef):
            return self, node
        source, original = self.imports.get(name, ("", ""))
        path = _module_file(source.split("."))
        return _parsed(path).find_class(original) if path else None


_parsed = functools.cache(_Module)


def _locate(target: str) -> tuple[_Module, list[str]]:
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        if path := _module_file(parts[:cut]):
            return _parsed(path), parts[cut:]
    raise CaldpoError("the package has no such module", key="_target_", value=target)


def _module_file(parts: list[str]) -> Path | None:
    if parts[0] not in _FOLDERS:
        return None
    stem = _FOLDERS[parts[0]].joinpath(*parts[1:])
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def _members(node: ast.AST) -> dict[str, ast.AST]:
    body = node.body if isinstance(node, ast.Module | ast.ClassDef) else []
    return {item.name: item for item in body if isinstance(item, ast.ClassDef | _Function)}


def _of_class(module: _Module, node: ast.ClassDef) -> tuple[dict[str, Parameter], bool]:
    init = _members(node).get("__init__")
    if isinstance(init, _Function):
        return _of_function(module, init, bound=True)
    parameters: dict[str, Parameter] = {}
    is_open = False
    for base in reversed(node.bases):
        written = ast.unparse(base).split("[")[0]
        if base_class := module.find_class(written):
            inherited, base_open = _of_class(*base_class)
            parameters |= inherited
            is_open |= base_open
        elif written not in _PLAIN_BASES:
            is_open = True
    if any(ast.unparse(d).split("(")[0] in ("dataclass", "dataclasses.dataclass") for d in node.decorator_list):
        parameters |= {field.name: field for field in _fields(module, node)}
    return parameters, is_open


def _fields(module: _Module, node: ast.ClassDef) -> Iterator[Parameter]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if ast.unparse(item.annotation).split("[")[0].split(".")[-1] in ("ClassVar", "KW_ONLY"):
            continue
        has_default = item.value is not None
        if isinstance(item.value, ast.Call) and ast.unparse(item.value.func).split(".")[-1] == "field":
            options = {k.arg: ast.unparse(k.value) for k in item.value.keywords}
            if options.get("init") == "False":
                continue
            has_default = bool({"default", "default_factory"} & set(options))
        yield Parameter(item.target.id, module.evaluate(item.annotation), has_default)


def _of_function(module: _Module, node: _Function, bound: bool) -> tuple[dict[str, Parameter], bool]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [*[None] * (len(positional) - len(arguments.defaults)), *arguments.defaults]
    reachable = list(zip(positional, defaults, strict=True))[max(len(arguments.posonlyargs), int(bound)) :]
    reachable += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {a.arg: Parameter(a.arg, module.evaluate(a.annotation), value is not None) for a, value in reachable}
    return parameters, arguments.kwarg is not None


def validated(decorated: Decorated) -> Decorated:
    """Check the arguments of an ``__init__``, a function or a dataclass against their annotations.

    Only given arguments are checked, and only against annotations that a yaml value can fit. A call then raises a
    CaldpoError with the argument, its value and what it must be. On a dataclass it stands above ``@dataclass``.
    """
    if isinstance(decorated, type):
        decorated.__init__ = _checked(decorated.__init__, decorated)  # type: ignore[misc]
        return decorated
    return _checked(decorated, decorated)  # type: ignore[return-value]


def _checked(function: Callable[..., Any], annotated: Any) -> Callable[..., Any]:
    signature = inspect.signature(function)
    # Resolved at the first call: annotations may name what the module defines further down.
    hints = functools.cache(lambda: resolved_hints(annotated))

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python's own message for a wrong call names the function
        for name, value in arguments.items():
            if name in hints() and (wrong := problem(hints()[name], value)):
                raise CaldpoError(wrong, key=name, value=value)
        return function(*args, **kwargs)

    return checked


def resolved_hints(annotated: Any) -> dict[str, Any]:
    """Resolve the annotations of a function or class, without those whose names cannot be."""
    try:
        return get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError):  # a name imported only for type checkers, and a union with such a name as text
        scope = getattr(inspect.unwrap(annotated), "__globals__", None) or vars(inspect.getmodule(annotated))
        hints = {}
        for name, annotation in inspect.get_annotations(annotated).items():
            try:
                hints[name] = eval(annotation, scope) if isinstance(annotation, str) else annotation
            except (NameError, TypeError):
                continue
        return hints

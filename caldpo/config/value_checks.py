"""Check values against annotations: ``problem(Positive, -1)`` is ``must be a number > 0``.

Pydantic checks, without its conversions: ``true`` is no number and ``"1"`` neither. An annotation that it is not asked
about (a tensor, a model) stands for an object that code supplies, and any value fits it.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError, WithJsonSchema

from caldpo.config.did_you_mean import as_yaml, suggest_known


class Section:
    """Base of stand-ins for classes of the package: a yaml gives one as a section with its ``_target_``."""


_CONFIG = ConfigDict(regex_engine="python-re", arbitrary_types_allowed=True)
_CONTAINERS = (list, tuple, Sequence, dict, Mapping)
_NOUNS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "null": "null",
}
_INTERVAL = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def is_config_type(annotation: Any) -> bool:
    """Tell whether a yaml value can be checked against ``annotation``; False for tensors, models and ``Any``."""
    origin, members = get_origin(annotation), _members(annotation)
    if len(members) > 1:
        return all(map(is_config_type, members))
    if origin is Annotated:
        return is_config_type(get_args(annotation)[0])
    return (
        annotation in (bool, int, float, str, None, type(None), Path, *_CONTAINERS)
        or is_section(annotation)
        or origin in (Literal, *_CONTAINERS)
    )


def is_section(annotation: Any) -> bool:
    """Tell whether ``annotation`` is, or allows, an object that a section describes."""
    return any(isinstance(member, type) and issubclass(member, Section) for member in _members(annotation))


def is_quantity(annotation: Any) -> bool:
    """Tell whether ``annotation`` is, or allows, a number: what it means then depends on its unit."""
    return any((get_args(m)[0] if get_origin(m) is Annotated else m) in (int, float) for m in _members(annotation))


def problem(annotation: Any, value: Any) -> str | None:
    """Explain why ``value`` does not fit, as ``must be ...``; None when it fits."""
    if _fits(annotation, value):
        return None
    from_python = Path in _members(annotation)  # where nothing is unquoted
    quoting = "; quote it to make it text" if not from_python and _fits(annotation, str(value)) else ""
    return f"must be {describe(annotation)}{quoting or _near_choice(annotation, value)}"


def describe(annotation: Any) -> str:
    """Describe the values that fit ``annotation``, in the words of a yaml file."""
    return _described(_adapter(annotation).json_schema())


def _described(schema: Mapping[str, Any]) -> str:
    """Describe a JSON schema."""
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return " or ".join(map(_described, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return f"one of {', '.join(map(as_yaml, schema.get('enum', [schema.get('const')])))}"
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        items = schema["prefixItems"]
        return f"a list of {len(items)}: {', '.join(map(_described, items))}"
    if kind == "array":
        return f"a list, each item {_described(schema['items'])}" if schema.get("items") else "a list"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"a mapping to {_described(values)}" if isinstance(values, Mapping) and values else "a mapping"
    if kind not in _NOUNS:
        return "an object"
    interval = " and ".join(f"{sign} {schema[name]:g}" for name, sign in _INTERVAL.items() if name in schema)
    return f"{_NOUNS[kind]} {interval}".strip()


def _fits(annotation: Any, value: Any) -> bool:
    if not is_config_type(annotation):
        return True  # also a union, whose unknown member accepts whatever that might be
    if isinstance(value, Real) and not isinstance(value, bool):  # a number of NumPy's
        value = int(value) if isinstance(value, Integral) else float(value)
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


@functools.lru_cache(maxsize=1024)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_strict(annotation), config=_CONFIG)


def _strict(annotation: Any) -> Any:
    """Adapt an annotation to pydantic: no conversion but of a list to a tuple; objects of code are ``Any``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (bool, int, float, str):
        return Annotated[annotation, Strict()]
    if annotation in (None, type(None), *_CONTAINERS):
        return annotation
    if annotation is Path:
        return Annotated[Any, BeforeValidator(_path), WithJsonSchema({"description": "a path"})]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        words = f"a section of its own keys ({annotation.__name__})"
        return Annotated[Any, BeforeValidator(_section), WithJsonSchema({"description": words})]
    if origin is Literal:  # True == 1 in Python, but not on the command line
        return Annotated[annotation, BeforeValidator(functools.partial(_choice, arguments))]
    if origin is Annotated:
        return Annotated[_strict(arguments[0]), *annotation.__metadata__]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_strict, arguments))]  # noqa: UP007 - of a number of members that is not known
    if origin in _CONTAINERS:
        return origin[tuple(item if item is Ellipsis else _strict(item) for item in arguments)]
    return Any


def _section(value: Any) -> Any:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise ValueError("no section")
    return value


def _path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike):
        raise ValueError("no path")
    return value


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    if (type(value), value) not in [(type(choice), choice) for choice in choices]:
        raise ValueError("no choice")
    return value


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _near_choice(annotation: Any, value: Any) -> str:
    choices = [choice for m in _members(annotation) if get_origin(m) is Literal for choice in get_args(m)]
    return suggest_known(value, choices)

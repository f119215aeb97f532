"""Whether a value fits an annotation, said in words: ``problem(Positive, -1)`` is ``must be a number > 0``.

Known annotations are ``bool``, ``int``, ``float``, ``str``, ``Annotated`` with a ``Bound`` or ``Pattern``,
``Literal``, ``X | None`` and other unions, ``list[X]``, ``tuple[X, ...]`` and ``dict[str, X]``. Every other
one (a tensor, a model) stands for an object that code supplies, and any value fits it.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from caldpo.config.bounds import Bound, Pattern
from caldpo.config.did_you_mean import VALUES


class Section:
    """Base of stand-ins for classes of the package: a yaml gives one as a section with its ``_target_``."""


_SEQUENCES = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)


def is_config_type(annotation: Any) -> bool:
    """Whether a yaml value can be held against ``annotation``; False for tensors, models and ``Any``."""
    if annotation in (bool, int, float, str, None, type(None), *_SEQUENCES, *_MAPPINGS):
        return True
    if is_section(annotation):
        return True
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return all(is_config_type(member) for member in get_args(annotation))
    if origin is Annotated:
        return is_config_type(get_args(annotation)[0])
    return origin is Literal or origin in _SEQUENCES or origin in _MAPPINGS


def is_section(annotation: Any) -> bool:
    """Whether ``annotation`` is, or allows, an object that a section describes."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(isinstance(member, type) and issubclass(member, Section) for member in members)


def is_quantity(annotation: Any) -> bool:
    """Whether ``annotation`` is, or allows, a number: what it means then depends on its unit."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any((get_args(m)[0] if get_origin(m) is Annotated else m) in (int, float) for m in members)


def problem(annotation: Any, value: Any) -> str | None:
    """What is wrong with ``value``, as ``must be ...``, or None when it fits."""
    if _fits(annotation, value):
        return None
    quoting = "; quote it to make it text" if _fits(annotation, str(value)) else ""
    return f"must be {describe(annotation)}{quoting or _near_choice(annotation, value)}"


def describe(annotation: Any) -> str:
    """The values that fit ``annotation``, in the words of a yaml file."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if annotation in names:
        return names[annotation]
    if annotation in (None, type(None)):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a section of its own keys ({annotation.__name__})"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(_yaml(choice) for choice in arguments)}"
    if origin is Annotated:
        return _describe_constrained(describe(arguments[0]), _constraint(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if annotation in _SEQUENCES or origin in _SEQUENCES:
        return _describe_sequence(origin, arguments)
    if annotation in _MAPPINGS or origin in _MAPPINGS:
        return f"a mapping to {describe(arguments[1])}" if arguments and arguments[1] is not Any else "a mapping"
    return "an object"


def suggest(word: object, choices: Iterable[object]) -> str:
    """`` (did you mean X?)`` for the choice closest to ``word``, or nothing when none is close."""
    names = [_yaml(choice) for choice in choices]
    plain = {_plain(name): name for name in names}
    if _plain(str(word)) in plain:
        return f" (did you mean {plain[_plain(str(word))]}?)"
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    near = near or [plain[name] for name in difflib.get_close_matches(_plain(str(word)), plain, n=1, cutoff=0.6)]
    return f" (did you mean {near[0]}?)" if near else ""


def _plain(word: str) -> str:
    """A word without what is most often written otherwise: ``CalDPO`` and ``cal-dpo`` are ``cal_dpo``."""
    return word.lower().replace("_", "").replace("-", "")


def _fits(annotation: Any, value: Any) -> bool:
    if not is_config_type(annotation):
        # A union with an unknown member accepts whatever that member might be.
        return True
    if annotation in (None, type(None)):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return isinstance(value, Mapping) and "_target_" in value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        # True == 1 in Python, but not on the command line.
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is Annotated:
        constraint = _constraint(annotation)
        return _fits(arguments[0], value) and (constraint is None or constraint.holds(value))
    if origin in (Union, types.UnionType):
        return any(_fits(member, value) for member in arguments)
    if annotation in _MAPPINGS or origin in _MAPPINGS:
        return isinstance(value, Mapping) and (
            not arguments or all(_fits(arguments[0], k) and _fits(arguments[1], v) for k, v in value.items())
        )
    return _fits_sequence(origin, arguments, value)


def _fits_sequence(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    if origin is tuple and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(_fits, arguments, value))
    return not arguments or all(_fits(arguments[0], item) for item in value)


def _describe_sequence(origin: Any, arguments: tuple[Any, ...]) -> str:
    if not arguments or arguments[0] is Any:
        return "a list"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(describe(item) for item in arguments)}"
    return f"a list, each item {describe(arguments[0])}"


def _describe_constrained(noun: str, constraint: Bound | Pattern | None) -> str:
    if constraint is None:
        return noun
    if isinstance(constraint, Pattern):
        return str(constraint)
    return f"{noun} {constraint}" if constraint != Bound() else noun.replace("a ", "a finite ", 1)


def _constraint(annotation: Any) -> Bound | Pattern | None:
    return next((extra for extra in annotation.__metadata__ if isinstance(extra, Bound | Pattern)), None)


def _near_choice(annotation: Any, value: Any) -> str:
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    choices = [choice for m in members if get_origin(m) is Literal for choice in get_args(m)]
    usual = next((name for name in VALUES.get(str(value).lower(), ()) if name in choices), None)
    return f" (did you mean {usual}?)" if usual else suggest(value, choices)


def _yaml(value: object) -> str:
    """A value as yaml and the command line write it."""
    spelled = {None: "null", True: "true", False: "false"}
    return spelled[value] if value is None or isinstance(value, bool) else str(value)

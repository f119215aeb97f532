"""The constructor's signature is the schema of its yaml.

``read_signature`` lets a yaml be checked before anything heavy is imported; ``validated`` checks the
arguments once more when the constructor is called, also from plain Python.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from caldpo.config.signature_source import Parameter, Signature, read_signature
from caldpo.config.value_checks import problem
from caldpo.errors import CaldpoError

__all__ = ["Parameter", "Signature", "read_signature", "resolved_hints", "validated"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def validated(decorated: Decorated) -> Decorated:
    """Check the arguments of an ``__init__``, a function or a dataclass against their annotations.

    Only given arguments are checked, and only against annotations that :mod:`caldpo.config.value_checks` knows.
    On a dataclass it stands above ``@dataclass``.

    Raises:
        CaldpoError: (when the decorated is called) naming the argument, its value and what it must be.
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
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python's own message for a wrong call names the function
        for name, value in given.items():
            if name in hints() and (wrong := problem(hints()[name], value)):
                raise CaldpoError(wrong, key=name, value=value)
        return function(*args, **kwargs)

    return checked


def resolved_hints(annotated: Any) -> dict[str, Any]:
    """Annotations of a function or class as objects, without those whose names cannot be resolved."""
    try:
        return get_type_hints(annotated, include_extras=True)
    except NameError:  # a name imported for type checkers alone
        scope = getattr(inspect.unwrap(annotated), "__globals__", None) or vars(inspect.getmodule(annotated))
        hints = {}
        for name, annotation in inspect.get_annotations(annotated).items():
            try:
                hints[name] = eval(annotation, scope) if isinstance(annotation, str) else annotation
            except NameError:
                continue
        return hints

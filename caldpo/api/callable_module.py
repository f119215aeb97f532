"""Modules that can be called: ``caldpo.train`` is the command ``python -m caldpo.train`` and a function.

Importing a submodule sets it on its package, so that no function of the package could have its name.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class CallableCommand(types.ModuleType):
    """A command's module, whose ``function`` a call of the module calls."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function()(*arguments, **keywords)

    @property
    def __signature__(self) -> Any:  # for help() and editors
        import inspect

        return inspect.signature(self.function())


def make_callable(name: str) -> None:
    """Make the module of this name callable, which defines ``function``; not one that runs as a command."""
    if name != "__main__":
        sys.modules[name].__class__ = CallableCommand

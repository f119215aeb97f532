"""What an environment has, by the standard library alone: this file is also run by the interpreters of others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any


def look(modules: Sequence[str], distributions: Sequence[str]) -> dict[str, Any]:
    """Where the modules lie (None: nowhere) and the versions of the distributions; nothing of theirs is run."""
    return {"modules": {m: _place(m) for m in modules}, "versions": {d: _version(d) for d in distributions}}


def _place(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    return next(iter(spec.submodule_search_locations or ()), spec.origin)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1].split(), sys.argv[2].split())))

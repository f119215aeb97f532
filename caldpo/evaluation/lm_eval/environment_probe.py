"""Look up modules and versions of an environment; standard library alone, since other interpreters run this file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any


def probe(modules: Sequence[str], distributions: Sequence[str]) -> dict[str, Any]:
    """Return locations of the modules (None: not installed) and versions of the distributions; import none of them."""
    return {"modules": {m: _location(m) for m in modules}, "versions": {d: _version(d) for d in distributions}}


def _location(module: str) -> str | None:
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
    print(json.dumps(probe(sys.argv[1].split(), sys.argv[2].split())))
